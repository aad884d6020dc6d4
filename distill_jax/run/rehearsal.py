"""Tries at the start of a run what its end needs: every loss and sampler, and room on the disk."""

import shutil
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from etils import epath

from distill_jax.models.build import abstract_params
from distill_jax.run import snapshots
from distill_jax.run.costs import BYTES, arguments, scaled
from distill_jax.run.measurements import measured
from distill_jax.run.monitor import check_measures
from distill_jax.run.plan import Run
from distill_jax.run.stages import Stage
from distill_jax.training.update import make_update
from distill_jax.typing import Tree

BATCH = 2  # Images of a traced sampler.


def rehearse(run: Run) -> None:
    """Traces the losses and samplers of the unfinished stages by shapes, and checks the disk.

    It computes nothing, and takes seconds. Where stages are measured in training, it makes the
    evaluator, which they and the report need, and measures real images.

    Raises:
      ValueError: for networks, losses and samplers that do not fit, for a full disk, and for a
        measure that does not exist.
    """
    stages, tried = [stage for stage in run.stages if not stage.finished], set()
    for stage in stages:
        for index, phase in enumerate(stage.method.phases):
            for turn in range(phase.variants):
                made_of = stage.roles, stage.tx, run.layout, turn, run.config.microbatches
                update = make_update(stage.method.phases, index, *made_of)
                update.eval_shape(*arguments(run, stage))
        kind = jax.tree.structure(stage.trained.sampler), stage.roles.student, stage.trained.inputs
        if kind not in tried:
            tried.add(kind)
            _trace_sampler(stage)
    _check_disk(run, stages)
    if measured(run.config.evaluate, stages):
        check_measures(run)


def _trace_sampler(stage: Stage) -> None:
    """Traces the sampler of a stage on its network."""
    network, trained = stage.roles.student, stage.trained
    params = abstract_params(network, trained.inputs)
    leaves = network.spec.example(trained.inputs)[2]
    cond = {
        name: jax.ShapeDtypeStruct((BATCH, *leaf.shape[1:]), leaf.dtype)
        for name, leaf in leaves.items()
        if name not in trained.sampler.takes
    }
    z = jax.ShapeDtypeStruct((BATCH, *network.spec.shape), jnp.float32)

    def sample(params: Tree, z: jax.Array, cond: dict[str, jax.Array]) -> jax.Array:
        return trained.sampler(jax.random.key(0), network(params), z, cond)

    jax.eval_shape(sample, params, z, cond)


def _check_disk(run: Run, stages: Sequence[Stage]) -> None:
    """Raises ValueError if a local disk has less room than states and finished networks take."""
    path = epath.Path(run.workdir)
    if not stages or "://" in str(path):
        return
    while not path.exists():
        path = path.parent
    free, needed = shutil.disk_usage(path).free, needed_bytes(run, stages)
    if needed > free:
        amounts = [scaled(size, BYTES) for size in (needed, free)]
        raise ValueError(
            f"the run writes up to {amounts[0]} into {run.workdir}, and {amounts[1]} are free; "
            "make room, keep fewer states (config.keep, config.keep_every), choose another "
            "--workdir, or start anyway with --norehearse"
        )


def needed_bytes(run: Run, stages: Sequence[Stage]) -> int:
    """Returns the largest number of bytes that the stages write and keep at a time.

    These are the missing shards of the cache, the finished networks and their snapshots, the states
    that `keep_every` keeps, and the newest states of a stage, or with `keep_states` of all: `keep`
    of them, at least two, and the one that is written.
    """
    config, kept, newest = run.config, 0, [0]
    for stage in stages:
        steps, state = stage.spec.steps, arguments(run, stage)[2]
        size = _bytes(state) + (_bytes(state.ema) if config.evaluate.keep_best else 0)
        saved = max(steps // config.save_every, 1)
        newest.append(size * min(max(config.keep, 2) + 1, saved + 1))
        kept += size * (steps // config.keep_every if config.keep_every else 0)
        kept += _bytes(stage.shapes["fake"]) if stage.spec.keep_fake else 0
        kept += _bytes(stage.shapes["student"]) + snapshots.size(stage)
    for part in run.cache.shards.values() if run.cache and run.cache.own else ():
        kept += part.dtype.itemsize * sum(len(part.rows(shard)) for shard in part.missing())
    return kept + (sum(newest) if config.keep_states else max(newest))


def _bytes(tree: Tree) -> int:
    """Returns the bytes of the leaves of a tree of shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
