"""Files on a local disk or in a bucket: paths, atomic writes, JSON and JSONL."""

import contextlib
import errno
import itertools
import json
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from distill_jax.runtime import distributed

PARTIAL = ".partial"  # End of the name of what is being written; a rename gives it its own.
MAX_JSON = 2**24  # Bytes of a JSON file; its objects can take 30 times as much memory.
MAX_DEPTH = 64  # Nesting of the objects and lists in a JSON file.


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns the absolute path, with ~ expanded; a path with a scheme, such as gs://, stays."""
    path = epath.Path(path).expanduser()
    return path if "://" in str(path) else path.absolute()


def default_workdir(file: str) -> str:
    """Returns runs/NAME for a config NAME.py, and runs/NAME_SIZE for NAME.py:SIZE.

    Of a size that is a path, the last part counts; words may follow after commas.
    """
    path, _, size = file.partition(":")
    place, _, options = size.partition(",")
    words = re.findall(r"[\w.-]+", f"{pathlib.PurePath(place).name} {options}")
    return "_".join([f"runs/{pathlib.Path(path).stem}", *words])


def flush(path: epath.PathLike) -> None:
    """Waits until a local file, or the names in a local directory, are on the disk."""
    if "://" in str(path):
        return
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # Some mounts flush no directory.
            raise
    finally:
        os.close(file)


def replace(path: epath.Path, content: bytes) -> None:
    """Writes a file atomically: a kill or a power cut leaves the old file or the new one.

    Writes to a bucket are atomic already, and a rename there would be a copy.
    """
    if "://" in str(path):
        path.write_bytes(content)
        return
    partial = path.parent / f"{path.name}{PARTIAL}"
    partial.write_bytes(content)
    flush(partial)
    partial.replace(path)
    flush(path.parent)


@contextlib.contextmanager
def written(path: epath.Path) -> Iterator[epath.Path]:
    """Yields a path beside a local file, which gets the file's name at the end without an error."""
    partial = path.parent / f"{path.name}{PARTIAL}"
    yield partial
    flush(partial)
    partial.replace(path)
    flush(path.parent)


def private_folder(name: str) -> pathlib.Path:
    """Returns distill_jax/NAME in XDG_CACHE_HOME or ~/.cache, created for its owner only.

    Raises:
      OSError: if it cannot be created, belongs to another user, or others can write to it.
      RuntimeError: if the user has no home.
    """
    given = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    folder = given if given.is_absolute() else pathlib.Path.home() / ".cache"
    for part in ("distill_jax", name):
        folder /= part
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(
                f"{folder} belongs to another user, or others can write to it; remove it, or run "
                f"chmod 700 {folder}"
            )
    return folder


def set_aside(path: epath.Path, name: epath.Path) -> epath.Path:
    """Renames a file or directory to `name`, or name_1, name_2, ..., and returns the new path."""
    others = (name.parent / f"{name.name}_{n}" for n in itertools.count(1))
    free = next(path for path in itertools.chain([name], others) if not path.exists())
    return path.rename(free)


def write_json(path: epath.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically, from the first process only."""
    if distributed.first():
        replace(path, (json.dumps(content, indent=2) + "\n").encode())


def read_bytes(path: epath.PathLike, limit: int) -> bytes:
    """Reads a file of at most `limit` bytes.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: for a larger file, and for a folder, pipe or device, which may have no end.
    """
    path = epath.Path(path)
    if "://" not in str(path) and os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is no regular file; expected a file with content")
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path} has more than {limit:,} bytes, which is too long for what it is")
    return content


def read_json(path: epath.PathLike, limit: int = MAX_JSON, kind: type = dict) -> Any:
    """Reads a JSON file, which may be damaged or come from anywhere.

    Args:
      path: path of the file.
      limit: largest number of bytes.
      kind: type of the content, dict or list.

    Raises:
      FileNotFoundError: if there is no file.
      ValueError: for a file that read_bytes refuses, invalid JSON, a content of another kind, more
        than MAX_DEPTH levels, integers beyond 64 bits, and text with NUL or half a surrogate pair.
    """
    return parse_json(read_bytes(path, limit), path, kind)


def parse_json(content: bytes | str, path: epath.PathLike, kind: type = dict) -> Any:
    """Returns the content of a JSON text from the file `path`; raises ValueError as read_json."""
    try:
        found = json.loads(content, parse_int=_int64)
        _check_parts(found)
    except (RecursionError, ValueError) as error:
        cause = "too many levels" if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{path} is no readable JSON ({cause:.200})") from error
    if not isinstance(found, kind):
        raise ValueError(f"{path} holds a {type(found).__name__}; expected a {kind.__name__}")
    return found


def _int64(text: str) -> int:
    """Returns the integer; raises ValueError if it has more than 64 bits."""
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise ValueError(f"the integer {text:.24} has more than 64 bits")
    return int(text)


def _check_parts(part: Any, depth: int = 0) -> None:
    """Raises ValueError for more than MAX_DEPTH levels, NUL, and text that has no UTF-8."""
    if isinstance(part, str) and b"\0" in part.encode():
        raise ValueError(f"NUL in {ascii(part):.100}")
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} levels")
    if isinstance(part, dict):
        for key in part:
            _check_parts(key, depth + 1)
        part = list(part.values())
    if isinstance(part, list):
        for entry in part:
            _check_parts(entry, depth + 1)


def append(path: epath.Path, text: str) -> None:
    """Appends text to a file and flushes it; in buckets, which cannot append, it is rewritten."""
    if "://" in str(path):
        path.write_text((path.read_text() if path.exists() else "") + text)
        return
    with path.open("a") as file:
        file.write(text)
    flush(path)
