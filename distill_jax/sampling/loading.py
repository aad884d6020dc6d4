"""Loading of finished networks from their directories."""

import contextlib
import dataclasses
import re
from collections.abc import Container, Iterator, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath

from distill_jax.models.adapters import Adapted
from distill_jax.models.build import abstract_params, adapter_shapes, make_network
from distill_jax.runtime import logging
from distill_jax.runtime.app import cause_of
from distill_jax.runtime.files import absolute
from distill_jax.runtime.sharding import Layout, make_layout
from distill_jax.sampling.codecs import Codec, load_codec
from distill_jax.sampling.manifest import PARTS, Manifest, Reference
from distill_jax.sampling.pipeline_parts import is_pipeline, read_parts
from distill_jax.sampling.prompts import load_conditioner
from distill_jax.sampling.student import Student
from distill_jax.storage import checkpoint
from distill_jax.typing import Tree

STUDENTS = epath.Path(__file__).parents[1] / "students"  # Made by benchmarks/students.py.


def load(
    path: epath.PathLike,
    layout: Layout | None = None,
    parts: Sequence[epath.PathLike] = (),
    allow: Container[str] = (),
    dtype: str | None = None,
) -> Student:
    """Loads the finished network in a directory.

    Args:
      path: a final/ directory, its stage, or a workdir, whose last finished stage is loaded; or, as
        a text, a name in `packaged`.
      layout: placement of the parameters on devices; None is the first device of this process.
      parts: directories outside its workdir that may hold its codec, or the base network of its
        adapters; for an imported network, the pipeline of diffusers that it was read from.
      allow: names package.module:Name of your own samplers, networks and schedules that the
        manifest may import.
      dtype: dtype of weights with more than one axis, converted as they are read, see
        models.build.rounded; None keeps the stored dtypes.

    Raises:
      FileNotFoundError: if there is no finished network.
      ValueError: if it is damaged, was written by a newer version, lacks a part, or names code that
        is not allowed.
    """
    return read(describe(path, layout, parts, allow), dtype)


def read(student: Student, dtype: str | None = None) -> Student:
    """Returns the student with its parameters, codec and text encoder; `dtype` as in `load`."""
    adapters, made_of = student.manifest.adapters, (student.layout, "params")
    codec, text = codec_of(student), student.text
    own = None if adapters else dtype
    params = load_own(student.directory, *made_of, student.allow, own)
    if adapters is not None:
        base = find_part(student, adapters.base)
        params = Adapted(load_own(base, *made_of, student.allow, dtype), params)
    if student.manifest.conditioner is not None:
        text = load_conditioner(find_part(student, student.manifest.conditioner))
    if student.manifest.codec is None:
        codec, text = read_parts(student.parts, student.manifest.spec) or (codec, text)
    return dataclasses.replace(student, params=params, codec=codec, text=text)


def codec_of(student: Student) -> Codec:
    """Returns the codec of a student that was described, see `find_part`; pixels without one."""
    if student.manifest.codec is None:
        return student.codec
    return load_codec(find_part(student, student.manifest.codec))


def load_own(
    path: epath.PathLike,
    layout: Layout,
    name: str = "params",
    allow: Container[str] = (),
    dtype: str | None = None,
) -> Tree:
    """Loads the parameters in a directory: all weights, or only adapters without their base.

    Args:
      path: see load.
      layout: see load.
      name: "params", or "fake" for the fake network of a stage with keep_fake.
      allow: see load.
      dtype: see load.

    Raises:
      FileNotFoundError: if there is no finished network.
      ValueError: if the parameters are missing or damaged.
    """
    student = describe(path, allow=allow)
    like = layout.abstract(own_shapes(student))
    return checkpoint.load_params(student.directory, like, name, dtype)


def own_shapes(student: Student) -> Tree:
    """Returns the shapes of the parameters in the directory of a student that was described."""
    adapters, made_of = student.manifest.adapters, (student.network_spec, student.trained.inputs)
    with _describing(student.directory, student.manifest):
        if adapters is None:
            return abstract_params(*made_of)
        return adapter_shapes(*made_of, adapters.rank, adapters.full)


def find_part(student: Student, part: Reference) -> epath.Path:
    """Finds the final/ of a student's codec or text encoder, or of the base of its adapters.

    It looks in `student.parts`, and at the manifest's path if that lies in the student's workdir.

    Raises:
      FileNotFoundError: if a place in `student.parts` holds no finished network.
      ValueError: if no place has the referenced fingerprint.
    """
    places, finals = [*student.parts], _finals(student)
    if inside := _inside(student, part.path):
        places.append(inside)
        finals += [inside / "final"] if (inside / "final" / "manifest.json").exists() else []
    for final in finals:
        if part.fingerprint in checkpoint.fingerprints(final):
            return final
    names = {"codec": "codec", "conditioner": "text encoder"}
    flag = next((name for name in names if getattr(student.manifest, name) == part), "base")
    looked = ", ".join(map(str, places)) or "nowhere, for it is outside the workdir"
    raise ValueError(
        f"{student.directory} needs {part.path}, with the fingerprint {part.fingerprint}; looked "
        f"at: {looked}. Name the directory of the {names.get(flag, 'weights under adapters')}: "
        f"parts=[DIR], or on a command line --{flag}=DIR"
    )


def with_parts_of(student: Student, network: Student) -> Student:
    """Returns a network that was described with the codec and text encoder of its student.

    A network that has its own, or that does not take what they give, is returned as it is.
    """
    mine, theirs = student.manifest, network.manifest
    refer = {name: getattr(mine, name) for name in PARTS if getattr(mine, name) is not None}
    if mine.spec != theirs.spec or any(getattr(theirs, name) is not None for name in refer):
        return network
    places = [find_part(student, reference) for reference in refer.values()]
    manifest = dataclasses.replace(theirs, **refer)
    return dataclasses.replace(network, manifest=manifest, parts=(*network.parts, *places))


def find_parent(student: Student) -> epath.Path | None:
    """Finds the final/ of the network that a student was trained from.

    Returns None if it no longer exists, and if it lies outside the workdir in a place that is not
    in `student.parts` or in this package: the manifest may come from anywhere.
    """
    parent = student.manifest.lineage.parent
    if parent is None:
        return None
    if inside := _inside(student, parent):
        return inside / "final" if (inside / "final" / "manifest.json").exists() else None
    finals = [*_finals(student), *map(find_final, packaged().values())]
    found = next((final for final in finals if str(final) == parent), None)
    if found is None:
        logging.say(
            f"{student.manifest.stage} was trained from {parent}, outside its workdir, which is "
            f"not read at the word of a manifest; --base={parent} compares with it"
        )
    return found


def _finals(student: Student) -> list[epath.Path]:
    """Returns the final/ of every place in `student.parts` but pipelines of diffusers."""
    return [find_final(part) for part in student.parts if not is_pipeline(part)]


def _inside(student: Student, path: str) -> epath.Path | None:
    """Returns the stage in the student's workdir that a manifest's path leads to; None for none."""
    found = re.fullmatch(r"\.\./\.\./(\w+)/final", path)
    return found and student.directory.parent.parent / found[1]  # type: ignore[union-attr]  # It is from a file.


def describe(
    path: epath.PathLike,
    layout: Layout | None = None,
    parts: Sequence[epath.PathLike] = (),
    allow: Container[str] = (),
) -> Student:
    """Returns the student like `load`, but without parameters, which are None."""
    final = find_final(path)
    manifest = Manifest.read(final, allow)
    described = {
        name: getattr(manifest, name) for name in ("model", "schedule", "parameterization")
    }
    with _describing(final, manifest):
        network_spec = make_network(described, manifest.spec, allow)
    layout = layout or make_layout({}, jax.local_devices()[:1])
    places = tuple(map(absolute, parts))
    return Student(manifest, network_spec, None, layout, final, places, allow)


@contextlib.contextmanager
def _describing(final: epath.Path | None, manifest: Manifest) -> Iterator[None]:
    """Turns the errors of a network that cannot be built as described into one ValueError.

    Errors in imported code, which the user allowed, are not changed.
    """
    try:
        yield
    except Exception as error:  # Any, because options of any value reach Flax and JAX.
        if manifest.imports:
            raise
        raise ValueError(
            f"{final}/manifest.json describes no network that can be built: {cause_of(error)}"
        ) from error


def packaged() -> dict[str, epath.Path]:
    """Returns the networks that come with this package: students, and the teacher of each."""
    found: dict[str, epath.Path] = {}
    for workdir in sorted(STUDENTS.glob("*")):
        found |= {workdir.name: workdir, f"{workdir.name}_teacher": workdir / "s00_teacher"}
    return found


def find_final(path: epath.PathLike) -> epath.Path:
    """Returns the final/ directory at `path`: itself, that of a stage, or the last of a workdir.

    A text that is a name in `packaged` always means that network; "./digits" is a directory.
    """
    given = path
    if isinstance(given, str) and (own := packaged().get(given)):
        if absolute(given).exists():
            logging.say(f"{given} is the network of this package; the directory is ./{given}")
        path = own
    path = absolute(path)
    candidates = [path, path / "final"]
    if path.is_dir():
        candidates += [stage / "final" for stage in sorted(path.glob("s[0-9]*_*"), reverse=True)]
    for candidate in candidates:
        if (candidate / "manifest.json").exists():
            return candidate
    names = "" if "/" in str(given) else f"; networks of this package: {', '.join(packaged())}"
    if beside := [each.parent.name for each in sorted(path.parent.glob("s[0-9]*_*/final"))]:
        names = f"; finished stages beside it: {', '.join(beside)}"
    there = "" if path.exists() else ", because it does not exist"
    raise FileNotFoundError(
        f"{path} has no finished network{there}: expected manifest.json in it, in its final/, or "
        f"in the final/ of a stage below it{names}"
    )


def define_flags() -> None:
    """Defines the flags --base, --codec, --conditioner, --pipeline and --allow, see `load`."""
    flags.disclaim_key_flags()  # They are the flags of the command, so its --help shows them.
    flags.DEFINE_multi_string(
        "base",
        [],
        "A network outside the student's workdir that it was trained from, or that its adapters "
        "change.",
    )
    flags.DEFINE_multi_string("codec", [], "A codec outside the student's workdir.")
    flags.DEFINE_multi_string("conditioner", [], "A text encoder outside the workdir.")
    flags.DEFINE_multi_string(
        "pipeline", [], "The pipeline of diffusers that an imported network was read from."
    )
    flags.DEFINE_multi_string(
        "allow", [], "Code, package.module:Name, that is imported if the student names it."
    )


def parts(values: Any) -> list[str]:
    """Returns the directories that the flags name, see `load`."""
    return values.base + values.codec + values.conditioner + values.pipeline
