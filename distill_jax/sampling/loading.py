"""Finished networks from their directories."""

import dataclasses

import jax
from etils import epath

from distill_jax.models.build import abstract_params, make_network
from distill_jax.runtime.files import absolute
from distill_jax.runtime.sharding import Layout, make_layout
from distill_jax.sampling.manifest import Manifest
from distill_jax.sampling.student import Student
from distill_jax.storage import checkpoint
from distill_jax.typing import Tree


def load(path: epath.PathLike, layout: Layout | None = None) -> Student:
    """The finished network in a directory.

    Args:
      path: a final/ directory, the stage it belongs to, or a workdir, whose last finished stage
        is taken.
      layout: where to put the parameters; None is the first device of this process, wherever they
        were trained.

    Raises:
      FileNotFoundError: when nothing finished is there.
      ValueError: when it is damaged or was written by a newer version.
    """
    student = describe(path, layout)
    params = student.layout.abstract(abstract_params(student.network_spec, student.trained.inputs))
    return dataclasses.replace(student, params=checkpoint.load_params(student.directory, params))


def load_fake(path: epath.PathLike, layout: Layout) -> Tree:
    """The parameters of the fake network that a stage with keep_fake left, as of `load`.

    Raises:
      FileNotFoundError: when nothing finished is there.
      ValueError: when there is no fake network, or it is damaged.
    """
    student = describe(path, layout)
    params = student.layout.abstract(abstract_params(student.network_spec, student.trained.inputs))
    return checkpoint.load_params(student.directory, params, "fake")


def describe(path: epath.PathLike, layout: Layout | None = None) -> Student:
    """`load` without reading the parameters, which are None."""
    final = find_final(path)
    manifest = Manifest.read(final)
    described = {
        name: getattr(manifest, name) for name in ("model", "schedule", "parameterization")
    }
    network_spec = make_network(described, manifest.spec)
    layout = layout or make_layout({}, jax.local_devices()[:1])
    return Student(manifest, network_spec, None, layout, final)


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
