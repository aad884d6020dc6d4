"""Paths that may lie in a bucket."""

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath

from distill_jax.runtime import distributed


def absolute(path: epath.PathLike) -> epath.Path:
    """The path from the root, ~ being the home; one with a scheme, such as gs://, is as it is."""
    path = epath.Path(path).expanduser()
    return path if "://" in str(path) else path.absolute()


def default_workdir(file: str) -> str:
    """runs/NAME for a config NAME.py, and runs/NAME_SIZE for NAME.py:SIZE."""
    path, _, size = file.partition(":")
    return f"runs/{pathlib.Path(path).stem}{'_' + size if size else ''}"


def replace(path: epath.Path, content: bytes) -> None:
    """Writes a file in one step: a kill leaves the old one or the new one.

    A bucket does that by itself, and renames by copying.
    """
    if "://" in str(path):
        path.write_bytes(content)
        return
    partial = path.parent / f"{path.name}.partial"
    partial.write_bytes(content)
    partial.replace(path)


def write_json(path: epath.Path, content: Mapping[str, Any]) -> None:
    """Replaces a JSON file in one step; with several processes the first does it."""
    if distributed.first():
        replace(path, (json.dumps(content, indent=2) + "\n").encode())


def append(path: epath.Path, text: str) -> None:
    """Adds text to the end of a file; a bucket cannot, so there the file is written anew."""
    if "://" in str(path):
        path.write_text((path.read_text() if path.exists() else "") + text)
        return
    with path.open("a") as file:
        file.write(text)


def read_lines(path: epath.Path) -> Iterator[Any]:
    """The whole lines of a JSONL file, none where it is not there; a kill may cut the last one."""
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            yield json.loads(line)
