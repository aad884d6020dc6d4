"""Reader of pickles of NumPy's arrays in nested dicts, which runs nothing that they name."""

import math
from typing import Any

import numpy as np
from etils import epath

from distill_jax.runtime.text import short
from distill_jax.storage.unpickle import (
    ARRAYS,
    Budget,
    ForbiddenError,
    Reader,
    Unpickler,
    is_size,
    origin_of,
    reading,
)
from distill_jax.storage.weights import mapped

MAX_DEPTH = 16  # Nesting of the dicts.


def read_arrays(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Reads the arrays of numbers in a pickled dict of dicts, by their keys joined by dots.

    Raises:
      ValueError: if the file is damaged, has other content, or names code that is not allowed.
    """
    content, found = mapped(path), {}
    with reading(path, "a pickled dict of arrays"):
        budget = Budget()
        rest: list[tuple[str, Any, int]] = [("", Unpickler(Reader(content), budget).load(), 0)]
        while rest:
            name, value, depth = rest.pop()
            budget.spend()
            if isinstance(value, dict) and depth < MAX_DEPTH:
                begin = f"{name}." if name else ""
                rest += [(f"{begin}{key:.99}", part, depth + 1) for key, part in value.items()]
            else:
                found[name] = _array(value)
    return found


def dtype_of(record: Any) -> np.dtype:
    """Returns the dtype of numbers that a pickle describes; raises ForbiddenError for others."""
    (name, *_), state = record.args, record.state
    order: Any = state[1] if isinstance(state, tuple) and len(state) > 1 else "|"
    if not isinstance(name, str) or name[:1] not in "fiub" or not name[1:].isdigit():
        raise ForbiddenError(f"it has a number of type {short(name)}")
    return np.dtype(name).newbyteorder(order)


def _array(record: Any) -> np.ndarray:
    """Returns the array that a record describes, a view of the file's bytes."""
    if origin_of(record) not in ARRAYS or not isinstance(record.state, tuple):
        raise ValueError(f"an array was expected, not {origin_of(record)}")
    _, shape, kind, by_columns, data = record.state
    dtype = dtype_of(kind)
    if type(shape) is not tuple or not all(map(is_size, shape)) or type(data) is not bytes:
        raise ValueError(f"an array has the shape {short(shape)}")
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError(f"an array of shape {short(shape)} has {len(data):,} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if by_columns else "C")
