"""Reader and writer of safetensors files, which contain a JSON header and arrays, but no code.

    8 bytes: the header's length; the header: {name: {"dtype", "shape", "data_offsets"}}; arrays

https://github.com/huggingface/safetensors, "Format". A large network is several files with an index
NAME.safetensors.index.json, which maps names of arrays to files.
"""

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from distill_jax.runtime.text import plain, reason, short
from distill_jax.storage.weights import BFLOAT16, Stored, mapped, of_array

DTYPES = {
    **{f"F{8 * width}": np.dtype(f"<f{width}") for width in (2, 4, 8)},
    **{f"I{8 * width}": np.dtype(f"<i{width}") for width in (1, 2, 4, 8)},
    **{f"U{8 * width}": np.dtype(f"<u{width}") for width in (1, 2, 4, 8)},
    "BF16": BFLOAT16,
    "BOOL": np.dtype(bool),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER = 2**22  # Bytes of a header or index, of which JSON makes thirty times as much memory.
POINTER = b"version https://git-lfs.github.com/spec"  # How a file that was not downloaded begins.
MAX_AXES, MAX_ELEMENTS = 32, 2**60  # Limits of numpy, beyond any real file.


def shards(path: epath.PathLike) -> list[epath.Path]:
    """Returns the files with the arrays of a file or an index.

    Raises:
      ValueError: if the index is damaged or names a file outside its own folder.
    """
    path = epath.Path(path)
    if path.suffix != ".json":
        return [path]
    return [path.parent / name for name in sorted(set(_weight_map(path).values()))]


def read(path: epath.PathLike) -> dict[str, Stored]:
    """Returns the arrays of a file, or of all files of an index, by name; reads only headers yet.

    Raises:
      ValueError: if a file is incomplete, damaged or of another format.
    """
    found: dict[str, Stored] = {}
    for file in shards(path):
        if not file.exists():
            raise ValueError(f"{file} does not exist; {path} names it")
        there = _read_file(file)
        for name in there.keys() & found.keys():
            raise ValueError(f"{file} has {plain(name)}, which another file of {path} has too")
        found.update(there)
    if epath.Path(path).suffix == ".json":
        named = _weight_map(epath.Path(path)).keys()
        for name in sorted(named ^ found.keys()):
            lacks = "is not in its files" if name in named else "is in its files and not in it"
            raise ValueError(
                f"{path}: {plain(name)} {lacks}; download index and files together again"
            )
    return found


def read_metadata(path: epath.PathLike) -> dict[str, str]:
    """Returns the texts by name that the header of one file has beside its arrays.

    Raises:
      ValueError: if the header is damaged, or the file of another format.
    """
    path = epath.Path(path)
    found = _header(path, mapped(path))[0].get("__metadata__", {})
    texts = found.items() if isinstance(found, dict) else ()
    return {name: text for name, text in texts if isinstance(text, str)}


def write(
    path: epath.PathLike, leaves: Mapping[str, Stored], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a file leaf by leaf, atomically; host memory holds one leaf at a time.

    Args:
      path: the file.
      leaves: arrays by name.
      metadata: texts by name, for the header.
    """
    path = epath.Path(path)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, leaf in sorted(leaves.items()):
        begin, end = end, end + leaf.nbytes
        described = {"dtype": NAMES[leaf.dtype], "shape": leaf.shape, "data_offsets": (begin, end)}
        header[name] = described
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.parent / f"{path.name}.partial"
    with partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, leaf in sorted(leaves.items()):
            file.write(np.ascontiguousarray(leaf.read(())).reshape(-1).view(np.uint8))
    partial.replace(path)


def _weight_map(path: epath.Path) -> dict[str, str]:
    """Reads the map from names of arrays to names of files in the folder of the index."""
    memory = mapped(path)
    if len(memory) > MAX_HEADER:
        raise _damaged(path, f"an index has at most {MAX_HEADER:,} bytes")
    try:
        content = json.loads(memory.tobytes(), object_pairs_hook=_unique)["weight_map"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise _damaged(path, f"it is no index with a weight_map ({reason(error)})") from error
    if not isinstance(content, dict):
        raise _damaged(path, "its weight_map is no object")
    for name in content.values():
        if not isinstance(name, str) or not _is_plain(name):
            raise ValueError(
                f"{path} is refused: it names the file {short(name)}; expected files *.safetensors "
                "in the folder of the index"
            )
    return content


def _is_plain(name: str) -> bool:
    """Returns whether a name is that of a *.safetensors file without a path."""
    return pathlib.PureWindowsPath(name).name == name and name.endswith(".safetensors")


def _read_file(path: epath.Path) -> dict[str, Stored]:
    """Returns the arrays of one file; they must fill the file after the header without a gap."""
    memory = mapped(path)
    header, size = _header(path, memory)
    try:
        header.pop("__metadata__", None)
        leaves = [(name, *_described(**entry)) for name, entry in header.items()]
    except (TypeError, ValueError) as error:
        raise _undescribed(path, error) from error
    data, end, found = memory[8 + size :], 0, {}
    for name, dtype, shape, begin, stop in sorted(leaves, key=lambda leaf: leaf[3:]):
        if begin != end or stop - begin != math.prod(shape) * dtype.itemsize or stop > len(data):
            raise _damaged(
                path,
                f"{plain(name)}, {dtype} of shape {short(shape)}, lies at bytes {begin:,} to "
                f"{stop:,} of {len(data):,}, and what is before it ends at {end:,}",
            )
        found[name] = of_array(data[begin:stop].view(dtype).reshape(shape))
        end = stop
    if end != len(data):
        raise _damaged(path, f"its arrays end at byte {end:,} of {len(data):,}")
    return found


def _header(path: epath.Path, memory: np.ndarray) -> tuple[dict[str, Any], int]:
    """Returns the header of a file, and its number of bytes."""
    if memory[: len(POINTER)].tobytes() == POINTER:
        raise ValueError(
            f"{path} is a pointer of Git LFS and not the file itself; run `git lfs pull` in its "
            "repository, or download the file"
        )
    size = int.from_bytes(memory[:8].tobytes(), "little")
    if len(memory) < 8 or size > min(MAX_HEADER, len(memory) - 8):
        raise _damaged(path, f"its header of {size:,} bytes exceeds the file or {MAX_HEADER:,}")
    try:
        header = json.loads(memory[8 : 8 + size].tobytes().decode(), object_pairs_hook=_unique)
    except (TypeError, ValueError, RecursionError) as error:
        raise _undescribed(path, error) from error
    if not isinstance(header, dict):
        raise _undescribed(path, TypeError(f"it is a {type(header).__name__}"))
    return header, size


def _described(
    dtype: Any, shape: Any, data_offsets: Any
) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """Returns a header entry after checking its types."""
    begin, stop = data_offsets
    for number in (*shape, begin, stop):
        if type(number) is not int or number < 0:
            raise ValueError(f"{short(number)} is no size")
    if len(shape) > MAX_AXES or math.prod(side or 1 for side in shape) > MAX_ELEMENTS:
        raise ValueError("a shape is beyond any file")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"dtype {short(dtype)} is none of {', '.join(DTYPES)}")
    return DTYPES[dtype], tuple(shape), begin, stop


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object; raises ValueError if a key occurs twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _undescribed(path: epath.Path, error: Exception) -> ValueError:
    return _damaged(path, f"its header describes no arrays ({reason(error)})")


def _damaged(path: epath.Path, reason: str) -> ValueError:
    return ValueError(
        f"{path} is cut short, damaged, or no file of safetensors: {reason}. Nothing in it was "
        "executed. Compare its size and checksum with those of the original"
    )
