"""Files of a stage: resumable states (storage.states) and its final network.

    STAGE/states/STEP/       whole training states, written in the background, the newest few
    STAGE/final/params/      the finished network's parameters
    STAGE/final/fake/        the fake network's parameters, for stages that keep it
    STAGE/final/manifest.json  a final/ with a manifest is complete
    STAGE/final.partial/     a final/ that is being written

Every file of a checkpoint is listed with its size and checksum before the checkpoint counts as
written. Otherwise a flipped byte in the middle of an array would restore as a wrong number.

With several processes, all of them call every function in this file. Each process writes and reads
its own shards of the arrays; only the first process does the rest.
"""

import math
import re
import shutil
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath

from distill_jax.runtime import distributed
from distill_jax.runtime.files import (
    MAX_JSON,
    PARTIAL,
    absolute,
    flush,
    read_bytes,
    read_json,
    set_aside,
    write_json,
)
from distill_jax.runtime.options import shown
from distill_jax.runtime.trees import by_name
from distill_jax.storage import checksums, trees
from distill_jax.storage.weights import Stored
from distill_jax.storage.writing import guarded, in_background, unnamed
from distill_jax.typing import Tree

MAX_RATIO, SPARE_BYTES = 8, 2**28  # Of the bytes of arrays and of their files, one to the other.
# Folders of a final/ -> the manifest's keys for the checksums of their files.
FINGERPRINTS = {"params": "fingerprint", "fake": "fake"}
WRITTEN = {"format", "checksum", "arrays", *FINGERPRINTS.values()}  # What save_final adds.


def save_final(
    directory: epath.PathLike,
    params: Tree,
    manifest: Mapping[str, Any],
    fake: Tree | None = None,
) -> None:
    """Writes final/ beside its place, flushes it to the disk, and renames it as a whole.

    A kill, a full disk or a power cut leaves no final/ or all of it. Buckets cannot rename, so
    there the manifest is written last and makes it complete.

    Args:
      directory: the final/ directory.
      params: parameters of the finished network; leaves of type Stored are read one at a time.
      manifest: content of the manifest.
      fake: parameters of the fake network, or None.

    Raises:
      FileExistsError: if a finished network is there already.
    """
    directory = absolute(directory)
    networks = {"params": params} if fake is None else {"params": params, "fake": fake}
    if distributed.broadcast_from_first((directory / "manifest.json").exists()):
        raise FileExistsError(f"{directory} is finished already; it stays as it is")
    bucket = "://" in str(directory)
    partial = directory if bucket else directory.parent / f"{directory.name}{PARTIAL}"
    if distributed.first() and not bucket:
        _remove(partial)
    distributed.barrier("no partial final")
    # Imported leaves are not read twice; the network is then known by its files.
    stored = any(isinstance(leaf, Stored) for leaf in jax.tree.leaves(params))
    arrays = {} if stored else {"arrays": checksums.of_arrays(params)}
    try:
        with guarded(directory):
            for name, tree in networks.items():
                save_tree(partial / name, tree, manifest.get("stage"))
            if distributed.first():
                found = {FINGERPRINTS[name]: _of_files(partial, name) for name in networks}
                content = {"format": checksums.FORMAT, **manifest, **found, **arrays}
                write_json(partial / "manifest.json", checksums.with_checksum(content))
                if not bucket:
                    _put_in_place(partial, directory)
    finally:
        if distributed.first() and not bucket:
            _remove(partial)
    distributed.barrier("final written")


def _remove(partial: epath.Path) -> None:
    """Removes what an earlier or failed write of a final/ left."""
    if partial.exists():
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: epath.Path, directory: epath.Path) -> None:
    """Renames a complete final/, and flushes its name and the names of the folders above it."""
    if directory.exists():  # Its manifest was lost, or never written.
        set_aside(directory, directory.parent / f"{directory.name}_without_manifest")
    partial.rename(directory)
    for folder in (directory.parent, directory.parent.parent):
        flush(folder)


def save_tree(path: epath.Path, tree: Tree, stage: str | None) -> None:
    """Writes one tree of arrays, as of a final/, with its checksums; it appears as a whole."""
    if distributed.first() and path.exists():  # In a bucket, of a run that was killed here.
        set_aside(path, path.parent / f"{path.name}_without_manifest")
    distributed.barrier("final set aside")
    options = in_background(lambda: checksums.write(unnamed(path), stage))
    trees.write(path, tree, options)


def record(directory: epath.PathLike, metrics: Mapping[str, Any]) -> None:
    """Writes measured quality, with the name of its protocol, into the manifest of a final/."""
    path = epath.Path(directory) / "manifest.json"
    write_json(path, checksums.with_checksum({**read_manifest(directory), "metrics": metrics}))


def fingerprint(directory: epath.PathLike) -> int:
    """Returns the checksum of the arrays in a final/: equal weights have equal fingerprints.

    Older versions, and imports, recorded a checksum of the files only, which is then returned; 0
    if there is none.
    """
    return fingerprints(directory)[0]


def fingerprints(directory: epath.PathLike) -> tuple[int, ...]:
    """Returns `fingerprint`, and the checksum of the files, which older manifests refer to."""
    files = _of_files(directory, "params")
    arrays = read_manifest(directory).get("arrays")
    return (arrays, files) if type(arrays) is int else (files,)


def _of_files(directory: epath.PathLike, name: str) -> int:
    """Returns a checksum of the listing of the files of some weights; 0 if it is missing."""
    path = epath.Path(directory) / name / checksums.FILE
    return zlib.crc32(read_bytes(path, MAX_JSON)) if path.exists() else 0


def read_manifest(directory: epath.PathLike) -> dict[str, Any]:
    """Reads the manifest of a final/.

    Raises:
      FileNotFoundError: if there is no manifest.
      ValueError: if it is damaged, of another stage, or was written by a newer version.
    """
    path = epath.Path(directory) / "manifest.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist: {directory} is not a finished network; give a workdir, a "
            "stage or its final/ directory of a run that got that far"
        )
    try:
        if "://" not in str(path) and not checksums.is_inside(path, path.parent):
            raise ValueError(f"{path} is no regular file below {path.parent}")
        manifest = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; {_again(path.parent)}") from error
    manifest = checked_manifest(manifest, path, _again(path.parent))
    stage, place = manifest.get("stage"), path.parent.parent.name
    if path.parent.name == "final" and re.match(r"s\d+_", place) and stage != place:
        raise ValueError(
            f"{path} is that of stage {shown(stage)}, not of {place}: another stage's final/ was "
            "put there; move it away and run the stage again"
        )
    return manifest


def checked_manifest(manifest: dict[str, Any], path: epath.PathLike, advice: str) -> dict[str, Any]:
    """Returns the content of a manifest without its checksum.

    Raises:
      ValueError: if it has no format number, is damaged, or was written by a newer version; the
        messages begin with `path`, and for damage have `advice`.
    """
    if type(manifest.get("format")) is not int:
        raise ValueError(f"{path} is no manifest of distill_jax: it has no format number")
    checksums.check_format(path, manifest["format"])
    if not checksums.is_intact(manifest):
        raise ValueError(
            f"{path} is damaged: its checksum is wrong; {advice} (if you changed it by hand, take "
            'its line "checksum" out)'
        )
    return {name: value for name, value in manifest.items() if name != "checksum"}


def load_params(
    directory: epath.PathLike, like: Tree, name: str = "params", dtype: str | None = None
) -> Tree:
    """Loads the parameters of a final/ in the structure and shardings of `like`.

    Args:
      directory: the final/ directory.
      like: tree of jax.ShapeDtypeStruct, whose dtypes are ignored.
      name: "params", or "fake" for the fake network.
      dtype: dtype of weights with more than one axis, converted as they are read; None keeps the
        stored dtypes.

    Raises:
      ValueError: if a file is damaged, or the manifest has another fingerprint.
    """
    directory = absolute(directory)
    path = directory / name
    advice = _again(directory)
    check_tree(path, like, advice)
    expected = read_manifest(directory).get(FINGERPRINTS[name])
    if expected not in (None, _of_files(directory, name)):
        raise ValueError(f"{path} is not what {directory / 'manifest.json'} is about; {advice}")
    return read_tree(path, like, advice, dtype)


def check_tree(path: epath.Path, like: Tree, advice: str) -> None:
    """Raises ValueError, which ends with `advice`, if files of save_tree are damaged."""
    checksums.read(path)  # On every process, because it raises for a newer format.
    fault = _disproportion(path, like) or checksums.verify(path) if distributed.first() else None
    if distributed.broadcast_from_first(int(fault is not None)):
        raise ValueError(f"{path} is damaged ({fault or 'says the first process'}); {advice}")


def read_tree(path: epath.Path, like: Tree, advice: str, dtype: str | None = None) -> Tree:
    """Reads the files of save_tree after `check_tree`; arguments and errors as of load_params."""
    params = trees.read(path, trees.as_stored(path, like, dtype), advice)
    leaves = by_name(params)
    finite = jax.device_get([_is_finite(leaf) for leaf in leaves.values()])
    if bad := [name for name, good in zip(leaves, finite, strict=True) if not good]:
        raise ValueError(f"{path} has values of {bad[0]} that are not finite; {advice}")
    return params


@jax.jit
def _is_finite(leaf: jax.Array) -> jax.Array:
    """Returns whether all values are finite; one small program for each shape."""
    return jnp.isfinite(leaf).all()


def _disproportion(path: epath.Path, like: Tree) -> str | None:
    """Returns the difference if files and arrays differ in size by more than compression explains.

    A description of a few bytes may otherwise name arrays that no memory holds, and a file may have
    holes that take no room on the disk.
    """
    try:
        stored = sum(file.stat().length for file in checksums.files(path))
    except (OSError, ValueError) as error:
        return str(error)
    needed = sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(like))
    if max(stored, needed) <= MAX_RATIO * min(stored, needed) + SPARE_BYTES:
        return None
    return f"it has {stored:,} bytes, and the network that is described takes {needed:,}"


def _again(final: epath.Path) -> str:
    return f"move {final} away and run the stage again, or copy it anew from where it came"
