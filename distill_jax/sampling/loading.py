"""Finished networks from their directories."""

import dataclasses
import re
from collections.abc import Sequence

import jax
from absl import flags
from etils import epath

from distill_jax.models.adapters import Adapted
from distill_jax.models.build import abstract_params, adapter_shapes, make_network
from distill_jax.runtime.files import absolute
from distill_jax.runtime.sharding import Layout, make_layout
from distill_jax.sampling.manifest import Manifest
from distill_jax.sampling.student import Student
from distill_jax.storage import checkpoint
from distill_jax.typing import Tree


def load(
    path: epath.PathLike, layout: Layout | None = None, base: Sequence[epath.PathLike] = ()
) -> Student:
    """The finished network in a directory.

    Args:
      path: a final/ directory, the stage it belongs to, or a workdir, whose last finished stage
        is taken.
      layout: where to put the parameters; None is the first device of this process, wherever they
        were trained.
      base: finished networks outside its workdir whose weights its adapters may change.

    Raises:
      FileNotFoundError: when nothing finished is there.
      ValueError: when it is damaged or was written by a newer version, or needs another `base`.
    """
    return read(describe(path, layout, base))


def read(student: Student) -> Student:
    """The student with its parameters."""
    params = load_own(student.directory, student.layout)
    if student.manifest.adapters is not None:
        params = Adapted(load_own(find_base(student), student.layout), params)
    return dataclasses.replace(student, params=params)


def load_own(path: epath.PathLike, layout: Layout, name: str = "params") -> Tree:
    """The parameters that a directory itself has: weights, or adapters of others.

    Args:
      path: see load.
      layout: see load.
      name: "params", or "fake" for those of the fake network that a stage with keep_fake left.

    Raises:
      FileNotFoundError: when nothing finished is there.
      ValueError: when they are not there, or damaged.
    """
    student = describe(path)
    adapters, made_of = student.manifest.adapters, (student.network_spec, student.trained.inputs)
    if adapters is None:
        shapes = abstract_params(*made_of)
    else:
        shapes = adapter_shapes(*made_of, adapters.rank, adapters.full)
    return checkpoint.load_params(student.directory, layout.abstract(shapes), name)


def find_base(student: Student) -> epath.Path:
    """The final/ of the network whose weights a student's adapters change.

    A manifest is followed within its own workdir only; elsewhere `student.bases` are looked at.

    Raises:
      FileNotFoundError: when nothing finished is there.
      ValueError: when none of them has the weights that the adapters were trained on.
    """
    adapters, places = student.manifest.adapters, [*student.bases]
    if inside := re.fullmatch(r"\.\./\.\./(\w+)/final", adapters.base):
        places.append(student.directory.parent.parent / inside[1])
    for final in map(find_final, places):
        if checkpoint.fingerprint(final) == adapters.fingerprint:
            return final
    looked = ", ".join(map(str, places)) or "nowhere, for they are outside its workdir"
    raise ValueError(
        f"{student.directory} has adapters of rank {adapters.rank} of the weights in "
        f"{adapters.base} with the fingerprint {adapters.fingerprint}; looked at: {looked}. Name "
        "the network that has them: base=[DIR], or --base=DIR on a command line"
    )


def describe(
    path: epath.PathLike, layout: Layout | None = None, base: Sequence[epath.PathLike] = ()
) -> Student:
    """`load` without reading the parameters, which are None."""
    final = find_final(path)
    manifest = Manifest.read(final)
    described = {
        name: getattr(manifest, name) for name in ("model", "schedule", "parameterization")
    }
    network_spec = make_network(described, manifest.spec)
    layout = layout or make_layout({}, jax.local_devices()[:1])
    return Student(manifest, network_spec, None, layout, final, tuple(map(absolute, base)))


def find_final(path: epath.PathLike) -> epath.Path:
    """The final/ directory that `path` means: itself, its stage's, or its workdir's last one."""
    path = absolute(path)
    candidates = [path, path / "final"]
    if path.is_dir():
        candidates += [stage / "final" for stage in sorted(path.glob("s[0-9]*_*"), reverse=True)]
    for candidate in candidates:
        if (candidate / "manifest.json").exists():
            return candidate
    raise FileNotFoundError(
        f"{path} has no finished network: expected manifest.json in it, in its final/, or in the "
        "final/ of a stage below it"
    )


def define_flags() -> None:
    """The flags that say what else a student may be made of."""
    flags.DEFINE_multi_string(
        "base", [], "A network outside the student's workdir whose weights its adapters may change."
    )
