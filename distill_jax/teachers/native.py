"""Reader and writer of our own networks as safetensors files, in torch's layout.

An array's name is the path of our parameter, joined by ".", with "weight" for a kernel, the scale
of a norm or a table of embeddings. Kernels are laid out as in torch, see `leaves`. A file that
`write` made has the manifest in its header, and any other is described by a config.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from distill_jax.runtime.app import cause_of
from distill_jax.runtime.files import MAX_JSON, parse_json
from distill_jax.runtime.trees import by_name, insert, is_stacked, layers_of, stack_layers
from distill_jax.sampling.codecs import described_codec
from distill_jax.sampling.loading import find_part
from distill_jax.sampling.manifest import PARTS, Manifest
from distill_jax.sampling.prompts import described_conditioner
from distill_jax.sampling.student import Student
from distill_jax.storage import checkpoint, checksums, safetensors
from distill_jax.storage.entries import chosen
from distill_jax.storage.weights import Stored, of_array, stacked, unstacked
from distill_jax.teachers.base import Imported, Part, configured
from distill_jax.teachers.directories import new_file
from distill_jax.teachers.given import check_given, split_key
from distill_jax.teachers.leaves import Leaf, Path, take
from distill_jax.typing import Tree

WEIGHTS = ("kernel", "scale", "embedding")
MANIFEST = "distill_jax"  # The manifest among the metadata in a header.
# A part's arrays are PART/NAME, and one of them is its manifest, which headers are too short for.
PART_MANIFEST = "manifest.json"
PART_READERS = {"codec": described_codec, "conditioner": described_conditioner}


def write(student: Student, out: epath.PathLike) -> epath.Path:
    """Writes a student as one file, from which `read` returns the same parameters bit for bit.

    Codec and text encoder are in the file if the student's manifest refers to them. Adapters are
    merged into their base.

    Args:
      student: a loaded student.
      out: new file, *.safetensors.

    Returns:
      The file.

    Raises:
      ValueError: for a student of one's own code, and for an `out` that exists.
    """
    out = new_file(out, "a file of safetensors", ".safetensors")
    if student.manifest.imports:
        raise ValueError(
            f"{student.manifest.stage} needs {', '.join(student.manifest.imports)}, and a file "
            "contains no code: copy its directory instead, and load it with --allow"
        )
    manifest = dataclasses.replace(student.manifest, adapters=None, fake=None)
    found = arrays(student.merged.params)
    held = {"codec": student.codec, "conditioner": student.text}
    for name in PARTS:
        if (reference := getattr(manifest, name)) is not None:
            content = checkpoint.read_manifest(find_part(student, reference))
            text = np.frombuffer(json.dumps(content).encode(), np.uint8)
            tree = by_name(getattr(held[name], "params", {})) | {PART_MANIFEST: text}
            found |= {f"{name}/{key}": of_array(np.asarray(leaf)) for key, leaf in tree.items()}
    content = checksums.with_checksum({"format": checksums.FORMAT, **manifest.to_json()})
    safetensors.write(out, found, {MANIFEST: json.dumps(content)})
    return out


def read(
    path: epath.PathLike,
    config: Mapping[str, Any] | None,
    given: Mapping[str, Any] | None = None,
) -> Imported:
    """Reads the network in a file, or in all files of an index.

    Args:
      path: *.safetensors or *.safetensors.index.json.
      config: config whose model, schedule, parameterization and data describe the network; None
        for a file with a manifest.
      given: as for base.configured, and "key", the first part of the names of the
        network's arrays, which our names do not have; nothing for a file with a manifest.

    Raises:
      ValueError: for a file with neither or both of manifest and config, a damaged one, and arrays
        that do not fit.
    """
    manifest = _manifest_in(epath.Path(path))
    if (config is None) == (manifest is None):
        advice = "does not describe its network; describe it with --config=FILE.py, whose model, "
        advice += "schedule, parameterization and data are read"
        raise ValueError(
            f"{path} {advice if config is None else 'describes its network; leave --config out'}"
        )
    state = safetensors.read(path)
    if manifest is not None:
        check_given(given or {}, {})
        imported, ours = _described(manifest, state, path)
    else:
        key, given = split_key(given)
        imported = Imported({}, **configured(config or {}, given))
        ours, state = imported.expected_params(), state if key is None else chosen(state, key)
    return imported._replace(params=stack_layers(take(state, leaves(ours)), ours, stacked))


def _manifest_in(path: epath.Path) -> Manifest | None:
    """Returns the manifest in the header of a file; None without one."""
    if path.suffix == ".json" or not path.exists():
        return None
    text = safetensors.read_metadata(path).get(MANIFEST)
    if text is None:
        return None
    advice = "export the student again, or copy the file anew"
    content = checkpoint.checked_manifest(parse_json(text, path), path, advice)
    return Manifest.from_json(content, str(path))


def _described(
    manifest: Manifest, state: dict[str, Stored], path: epath.PathLike
) -> tuple[Imported, Tree]:
    """Returns the network of a manifest without parameters, and their shapes.

    The arrays of its codec and text encoder move from `state` to its parts.
    """
    names = [name for name in PARTS if getattr(manifest, name) is not None]
    imported = Imported(
        {},
        dict(manifest.model),
        dict(manifest.schedule),
        manifest.parameterization,
        shape=manifest.spec.x.shape,
        num_classes=0,
        num_steps=manifest.trained.num_steps,
        label_dropout=0.0,
        spec=manifest.spec,
        manifest=manifest,
        parts={name: _part(name, state, path) for name in names},
    )
    try:
        return imported, imported.expected_params()
    except Exception as error:  # Any, because options of any value reach Flax and JAX.
        raise ValueError(
            f"{path} describes no network that can be built: {cause_of(error)}"
        ) from error


def _part(name: str, state: dict[str, Stored], path: epath.PathLike) -> Part:
    """Returns the codec or text encoder in a file, after removing its arrays from `state`."""
    start, tree = f"{name}/", dict[str, Any]()
    own = {key: state.pop(key) for key in list(state) if key.startswith(start)}
    described = own.pop(f"{start}{PART_MANIFEST}", None)
    if described is None or described.nbytes > MAX_JSON:
        raise ValueError(f"{path} lacks the {name} that it refers to; export the student again")
    content = parse_json(described.read(()).tobytes(), path)
    content = checkpoint.checked_manifest(content, path, "export the student again")
    kind, more = PART_READERS[name](content, path)
    try:
        for key, leaf in own.items():
            insert(tree, key.removeprefix(start), leaf)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"{path} has arrays of its {name} within an array") from error
    return Part(content, tree, kind.shapes(more))  # type: ignore[arg-type]  # Of the same reader.


def arrays(params: Tree) -> dict[str, Stored]:
    """Returns the arrays of a file for parameters, the inverse of what `read` does to them.

    Raises:
      ValueError: for two parameters that have one name in the file.
    """
    singles: dict[Path, Stored] = {}
    for name, leaf in by_name(params).items():
        one = of_array(np.asarray(leaf))
        layers = unstacked(one) if is_stacked(name) else [one]
        paths = (tuple(single.split("/")) for single in layers_of(name))
        singles.update(zip(paths, layers, strict=True))
    found: dict[str, Stored] = {}
    for path, there in leaves(params):
        if there.name in found:
            raise ValueError(f"two parameters of the network have the name {there.name} in a file")
        change = functools.partial(_theirs, kind=path[-1], shape=there.shape)
        found[there.name] = singles[path].changed(change)
    return found


def _theirs(array: np.ndarray, kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Returns an array of ours with the layout and shape that it has in a file, see `leaves`."""
    if kind != "kernel":
        return array.reshape(shape)
    return array.transpose(3, 2, 0, 1) if len(shape) == 4 else array.reshape(shape[::-1]).T


def leaves(params: Tree) -> Iterator[tuple[Path, Leaf]]:
    """Yields the path of every parameter of our network with its array in the file.

    Stacked layers are single ones in the file: block[0:12]/qkv/kernel is block_0.qkv.weight etc.
    A convolution kernel (rows, columns, in, out) is (out, in, rows, columns) in the file. Any other
    kernel is a matrix (out, in) with joined attention axes: (width, 3, heads, dim) becomes (3 heads
    dim, width), and (heads, dim, width) becomes (width, heads dim). The bias of the layer decides
    which axes are outputs; in the file it has one axis. All other arrays are unchanged.
    """
    shapes = {
        tuple(single.split("/")): leaf.shape[is_stacked(name) :]
        for name, leaf in by_name(params).items()
        for single in layers_of(name)
    }
    for (*layer, kind), shape in shapes.items():
        name = ".".join((*layer, "weight" if kind in WEIGHTS else kind))
        bias = shapes.get((*layer, "bias"), (1,))
        yield (*layer, kind), _leaf(name, kind, shape, len(bias))


def _leaf(name: str, kind: str, shape: tuple[int, ...], outs: int) -> Leaf:
    if kind == "bias":
        return Leaf(name, (math.prod(shape),), lambda array: array.reshape(shape))
    if kind != "kernel":
        return Leaf(name, shape, lambda array: array)
    if len(shape) == 4 and outs == 1:
        rows, columns, ins, channels = shape
        there = (channels, ins, rows, columns)
        return Leaf(name, there, lambda array: array.transpose(2, 3, 1, 0))
    flat = (math.prod(shape[-outs:]), math.prod(shape[:-outs]))
    return Leaf(name, flat, lambda array: array.T.reshape(shape))
