"""Files on a local disk or in a bucket: paths, atomic writes, JSON and JSONL."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from distill_jax.runtime import distributed


def absolute(path: epath.PathLike) -> epath.Path:
    """Returns the absolute path, with ~ expanded; a path with a scheme, such as gs://, stays."""
    path = epath.Path(path).expanduser()
    return path if "://" in str(path) else path.absolute()


def default_workdir(file: str) -> str:
    """Returns runs/NAME for a config NAME.py, and runs/NAME_SIZE for NAME.py:SIZE."""
    path, _, size = file.partition(":")
    return f"runs/{pathlib.Path(path).stem}{'_' + size if size else ''}"


def replace(path: epath.Path, content: bytes) -> None:
    """Writes a file atomically: a kill leaves the old file or the new one.

    Writes to a bucket are atomic already, and a rename there would be a copy.
    """
    if "://" in str(path):
        path.write_bytes(content)
        return
    partial = path.parent / f"{path.name}.partial"
    partial.write_bytes(content)
    partial.replace(path)


def write_json(path: epath.Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file atomically, from the first process only."""
    if distributed.first():
        replace(path, (json.dumps(content, indent=2) + "\n").encode())


def append(path: epath.Path, text: str) -> None:
    """Appends text to a file; buckets cannot append, so the whole file is written again there."""
    if "://" in str(path):
        path.write_text((path.read_text() if path.exists() else "") + text)
        return
    with path.open("a") as file:
        file.write(text)


def read_lines(path: epath.Path) -> Iterator[Any]:
    """Yields the complete lines of a JSONL file, if it exists; a kill may truncate the last."""
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            yield json.loads(line)
