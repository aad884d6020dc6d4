"""Listings of a checkpoint's files, with their sizes and checksums.

A listing is written before its checkpoint gets its name, so a checkpoint without one is damaged.
"""

import concurrent.futures
import json
import zlib
from collections.abc import Mapping
from typing import Any

from etils import epath

from distill_jax.runtime.files import flush, read_json, write_json

FORMAT = 3  # Format number of listings and manifests.
FILE = "checksums.json"
# Files that Orbax writes after the listing; they hold no data.
UNLISTED = (FILE, "_CHECKPOINT_METADATA", "commit_success.txt")


def write(directory: epath.PathLike, stage: str | None = None) -> None:
    """Flushes a directory to the disk, and lists its files: sizes, CRC-32, the stage's name."""
    directory = epath.Path(directory)
    found = _walk(directory)
    files = [path for path in found if path.name not in UNLISTED]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(flush, [*found, *{path.parent for path in found}]))
        prints = pool.map(_fingerprint, files)
        names = [str(path.relative_to(directory)) for path in files]
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
    if not isinstance(listing, dict):
        return f"{FILE} cannot be read"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        files = [directory / name for name in listing]
        prints = pool.map(lambda file: _fingerprint(file) if file.exists() else None, files)
        for name, expected, found in zip(listing, listing.values(), prints, strict=True):
            if found is None:
                return f"{name} is missing"
            if found[0] != expected[0]:
                return f"{name} has {found[0]} bytes of {expected[0]}"
            if found[1] != expected[1]:
                return f"{name} has a wrong checksum"
    return None


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


def _walk(directory: epath.Path) -> list[epath.Path]:
    found = []
    for path in sorted(directory.iterdir()):
        found += _walk(path) if path.is_dir() else [path]
    return found


def _fingerprint(path: epath.Path) -> list[int]:
    size = checksum = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
    return [size, checksum]
