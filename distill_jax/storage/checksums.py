"""Listings of a checkpoint's files, with their sizes and checksums.

A listing is written before its checkpoint gets its name, so a checkpoint without one is damaged.
"""

import concurrent.futures
import json
import os
import pathlib
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from distill_jax.runtime import distributed
from distill_jax.runtime.files import flush, read_json, write_json
from distill_jax.runtime.trees import by_name
from distill_jax.typing import Tree

FORMAT = 3  # Format number of listings and manifests.
FILE = "checksums.json"
# Files that Orbax writes after the listing; they hold no data.
UNLISTED = (FILE, "_CHECKPOINT_METADATA", "commit_success.txt")


def write(directory: epath.PathLike, stage: str | None = None) -> None:
    """Flushes a directory to the disk, and lists its files: sizes, CRC-32, the stage's name."""
    directory = epath.Path(directory)
    found = files(directory)
    listed = [path for path in found if path.name not in UNLISTED]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(flush, [*found, *{path.parent for path in found}]))
        prints = pool.map(_fingerprint, listed)
        names = [str(path.relative_to(directory)) for path in listed]
        listing = dict(zip(names, prints, strict=True))
    content = {"format": FORMAT, "stage": stage, "files": listing}
    write_json(directory / FILE, with_checksum(content))


def read(directory: epath.Path) -> dict[str, Any]:
    """Reads a listing; returns {} if it is missing or damaged.

    Raises:
      ValueError: if a newer version wrote it.
    """
    try:
        content = read_json(directory / FILE)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return {}
    if type(content.get("format")) is not int:
        return {}
    check_format(directory / FILE, content["format"])
    return content if is_intact(content) else {}


def verify(directory: epath.PathLike) -> str | None:
    """Returns the first difference from the listing in words; None if all files are as listed."""
    directory = epath.Path(directory)
    if not (directory / FILE).exists():
        return f"{FILE} is missing"
    listing = read(directory).get("files")
    if not isinstance(listing, dict) or not all(map(_is_entry, listing.values())):
        return f"{FILE} cannot be read"
    try:
        there = {str(path.relative_to(directory)): path for path in files(directory)}
    except ValueError as error:
        return str(error)
    if missing := [name for name in listing if name not in there]:
        return f"{missing[0]:.200} is missing"
    for name, (size, _) in listing.items():
        if (found := there[name].stat().length) != size:
            return f"{name} has {found} bytes of {size}"
    return _difference(listing, there)


def _difference(listing: Mapping[str, Any], there: Mapping[str, epath.Path]) -> str | None:
    """Returns the first file, in words, whose checksum is not the listed one; None for none."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        prints = pool.map(_fingerprint, (there[name] for name in listing))
        for name, expected, found in zip(listing, listing.values(), prints, strict=True):
            if found != expected:
                return f"{name} has a wrong checksum"
    return None


def _is_entry(entry: Any) -> bool:
    """Returns whether an entry of a listing is [size, checksum]."""
    return isinstance(entry, list) and len(entry) == 2 and all(type(n) is int for n in entry)


def of_arrays(tree: Tree) -> int:
    """Returns a checksum of the names, shapes, dtypes and values of arrays, whatever their files.

    Every process must call it, because it gathers sharded arrays, one at a time.
    """
    total = 0
    for name, leaf in sorted(by_name(tree).items()):
        here = not isinstance(leaf, jax.Array) or leaf.is_fully_addressable
        x = np.asarray(leaf if here else distributed.allgather(leaf))
        total = zlib.crc32(f"{name} {x.shape} {x.dtype}".encode(), total)
        total = zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data, total)
    return total


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of a JSON file with a checksum added."""
    content = {key: value for key, value in content.items() if key != "checksum"}
    return {**content, "checksum": zlib.crc32(json.dumps(content, sort_keys=True).encode())}


def is_intact(content: Mapping[str, Any]) -> bool:
    """Returns whether the content matches its checksum, or has none."""
    return content.get("checksum", True) in (True, with_checksum(content)["checksum"])


def check_format(path: epath.Path, number: int) -> None:
    """Raises ValueError if a newer version wrote the file."""
    if number > FORMAT:
        raise ValueError(
            f"{path} has format {number}; this version of distill_jax reads up to {FORMAT}: "
            "install a newer one"
        )


def files(directory: epath.Path) -> list[epath.Path]:
    """Returns the files below a directory; links among them stay within its parent.

    Raises:
      ValueError: for a pipe or a device, which may have no end, and for a link to a folder or out
        of the directory's parent.
    """
    found: list[epath.Path] = []
    folders = [directory]
    while folders:
        for path in folders.pop().iterdir():
            if "://" in str(path):
                (folders if path.is_dir() else found).append(path)
            elif path.is_dir() and not os.path.islink(path):
                folders.append(path)
            elif is_inside(path, directory.parent):
                found.append(path)
            else:
                raise ValueError(f"{path} is no regular file below {directory.parent}")
    return sorted(found)


def is_inside(path: epath.Path, directory: epath.Path) -> bool:
    """Returns whether a path leads to a regular file below a local directory, also by links."""
    target, home = (pathlib.Path(os.path.realpath(place)) for place in (path, directory))
    return target.is_file() and target.is_relative_to(home)


def _fingerprint(path: epath.Path) -> list[int]:
    size = checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]
