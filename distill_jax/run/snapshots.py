"""Post-hoc EMA: snapshots of a stage's averages in training, and reconstruction after it.

Karras et al. (2023, arXiv:2312.02696), section 3; see training.averages.
"""

import dataclasses
import os
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from distill_jax.run.lock import Lock
from distill_jax.run.stages import Stage
from distill_jax.runtime import heartbeat, logging
from distill_jax.runtime.files import absolute
from distill_jax.runtime.options import OptionError, check, shown
from distill_jax.sampling import loading
from distill_jax.sampling.manifest import PARTS, Manifest
from distill_jax.storage import checkpoint, snapshots
from distill_jax.storage.snapshots import FOLDER, Snapshot
from distill_jax.training.averages import SIGMA_REL, Profile, gamma_of, reconstruction
from distill_jax.training.loop import Call, check_finite
from distill_jax.training.update import Metrics, TrainState
from distill_jax.typing import Tree

MAX_SNAPSHOTS = 2000  # Of a stage; their profiles are compared pair by pair.
MAX_ERROR = 0.2  # Of a profile, relative; see averages.reconstruction.
BITS = {"float32": 32, "bfloat16": 16}


def check_stage(stage: Stage, updates_per_call: int) -> None:
    """Raises OptionError for a `snapshot_every` that does not fit the rest of the config."""
    spec, key = stage.spec, f"config.stages.{stage.name}.snapshot_every"
    every = spec.snapshot_every
    if bool(spec.posthoc) != bool(every):
        raise OptionError(
            key,
            f"is {every}, and posthoc {shown(tuple(spec.posthoc))}: expected both, such as "
            f"posthoc=(0.05, 0.1) and snapshot_every={max(1, spec.steps // 32)}, or neither",
        )
    if every % updates_per_call:
        raise OptionError(
            key,
            f"is {every}; expected a multiple of config.updates_per_call, {updates_per_call}: "
            "averages are stored between calls",
        )
    if count(spec) * len(spec.posthoc) > MAX_SNAPSHOTS:
        raise OptionError(
            key,
            f"is {every}, and steps {spec.steps:,}: expected at most {MAX_SNAPSHOTS:,} snapshots",
        )


def count(spec: ConfigDict) -> int:
    """Returns the number of snapshots of each average: every `snapshot_every`, and at the end."""
    return -(-spec.steps // spec.snapshot_every) if spec.posthoc else 0


def size(stage: Stage) -> int:
    """Returns the bytes of all snapshots of a stage on the disk, before they are compressed."""
    numbers = sum(leaf.size for leaf in jax.tree.leaves(stage.shapes["student"]))
    number = count(stage.spec) * len(stage.spec.posthoc)
    return number * numbers * BITS[stage.spec.snapshot_dtype] // 8


def show(stages: Sequence[Stage]) -> Iterator[str]:
    """Yields a line with the snapshots and bytes of each stage that has any."""
    for stage in stages:
        if stage.spec.posthoc:
            lengths = ", ".join(f"{each:g}" for each in stage.spec.posthoc)
            number = logging.counted(len(stage.spec.posthoc), "average")
            yield (
                f"{stage.name} stores {number}, of sigma_rel {lengths}, "
                f"{logging.counted(count(stage.spec), 'time')} in {stage.spec.snapshot_dtype}: "
                f"{size(stage):,} bytes in {stage.name}/{FOLDER}"
            )


def storing(
    iterate: Callable, stage: Stage, log: logging.StageLog, lock: Lock
) -> Callable[[TrainState, Call], tuple[TrainState, Metrics]]:
    """Returns `iterate` that also stores the averages, after the iterations when that is due."""
    spec = stage.spec
    if not spec.posthoc:
        return iterate

    def stored(state: TrainState, call: Call) -> tuple[TrainState, Metrics]:
        state, metrics = iterate(state, call)
        step = call.iterations.stop
        if step % spec.snapshot_every == 0 or step == spec.steps:
            check_finite(step, state)
            lock.check()
            averages = dict(zip(spec.posthoc, state.averages, strict=True))
            with log.aside():
                snapshots.write(stage.directory, step, averages, spec.snapshot_dtype)
            heartbeat.beat()
        return state, metrics

    return stored


class Reconstructed(NamedTuple):
    """A reconstructed average: its stage, the number of snapshots, the relative profile error."""

    stage: str
    snapshots: int
    error: float


def reconstruct(
    directory: epath.PathLike, sigma_rel: float, out: epath.PathLike, allow: Container[str] = ()
) -> Reconstructed:
    """Writes a finished network with the average of another length over a stage's training.

    Args:
      directory: a finished stage, or a workdir, whose last stage is taken.
      sigma_rel: length of the average, see training.averages.
      out: final/ of the new network. In a folder of the stage's workdir, the network finds its
        codec, text encoder and teacher as the stage does; elsewhere they have to be named.
      allow: see loading.load.

    Raises:
      FileNotFoundError: if there is no finished network.
      ValueError: if the stage has no snapshots, too few for this length, or damaged ones.
    """
    check("sigma_rel", sigma_rel, SIGMA_REL)
    student, out = loading.describe(directory, allow=allow), absolute(out)
    final, name = student.directory, student.manifest.stage
    found = [each for each in snapshots.find(final.parent) if SIGMA_REL.allows(each.sigma_rel)]
    if not found:
        raise ValueError(
            f"{final.parent / FOLDER} has no snapshots of averages; train the stage with "
            "posthoc=(0.05, 0.1) and snapshot_every of about a 32nd of its steps"
        )
    if len(found) > MAX_SNAPSHOTS:
        raise ValueError(f"{final.parent / FOLDER} has more than {MAX_SNAPSHOTS:,} snapshots")
    last = max(each.iteration for each in found)
    gammas = {each: gamma_of(each) for each in {each.sigma_rel for each in found}}
    profiles = np.array([(gammas[each.sigma_rel], each.iteration) for each in found], float)
    target = Profile(gamma_of(sigma_rel), last)
    coefficients, error = reconstruction(Profile(*profiles.T), target)
    if error > MAX_ERROR:
        raise ValueError(
            f"the average of sigma_rel {sigma_rel:g} would have a profile that is wrong by "
            f"{error:.0%}: {final.parent / FOLDER} has {logging.counted(len(found), 'snapshot')}, "
            f"after {logging.counted(len({each.iteration for each in found}), 'iteration')}; take "
            f"a sigma_rel nearer to the stored {_lengths(found)}, or train with a smaller "
            "snapshot_every"
        )
    like = student.layout.abstract(loading.own_shapes(student))
    params = _combined(found, coefficients, like, name)
    told = {"sigma_rel": sigma_rel, "iteration": last, "snapshots": len(found), "error": error}
    manifest = _moved(dataclasses.replace(student.manifest, posthoc=told), final, out)
    checkpoint.save_final(out, params, manifest.to_json())
    return Reconstructed(name, len(found), error)


def _lengths(found: Sequence[Snapshot]) -> str:
    return " and ".join(f"{each:g}" for each in sorted({each.sigma_rel for each in found}))


def _combined(found: Sequence[Snapshot], coefficients: np.ndarray, like: Tree, stage: str) -> Tree:
    """Returns the sum of the snapshots times their coefficients, with one of them in memory."""
    total = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), like)
    for snapshot, coefficient in zip(found, coefficients, strict=True):
        total = _add(total, snapshots.read(snapshot, like, stage), coefficient)
    return total


@jax.jit
def _add(total: Tree, tree: Tree, coefficient: jax.Array) -> Tree:
    return jax.tree.map(lambda a, b: a + coefficient * b, total, tree)


def _moved(manifest: Manifest, old: epath.Path, new: epath.Path) -> Manifest:
    """Returns the manifest of weights in `new`, given that of a final/, which it can refer to."""

    def path(given: str | None) -> str | None:
        inside = given is not None and given.startswith("../../")
        if not inside or old.parent.parent == new.parent.parent:
            return given
        return os.path.normpath(old / given)

    lineage, adapters = manifest.lineage, manifest.adapters
    parts: dict[str, Any] = {name: getattr(manifest, name) for name in PARTS}
    parts = {name: each and each._replace(path=path(each.path)) for name, each in parts.items()}
    if adapters is not None:
        base = adapters.base
        parts["adapters"] = adapters._replace(base=base._replace(path=path(base.path)))
    parts["lineage"] = dataclasses.replace(
        lineage,
        parent=path(lineage.parent),
        init=path(lineage.init),
        init_fake=path(lineage.init_fake),
    )
    return dataclasses.replace(manifest, fake=None, best=None, metrics={}, **parts)
