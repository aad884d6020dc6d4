"""Conversion of images between bytes in 0 .. 255 and floats in [-1, 1]."""

from typing import TypeVar

import jax
import numpy as np

Array = TypeVar("Array", np.ndarray, jax.Array)


def normalise(x: Array) -> Array:
    """Converts uint8 0 .. 255 to float32 x / 127.5 - 1 in [-1, 1]; returns float32 unchanged."""
    return x.astype(np.float32) / 127.5 - 1 if x.dtype == np.uint8 else x


def to_uint8(x: np.ndarray) -> np.ndarray:
    """Converts [-1, 1] to 0 .. 255, rounded to the nearest; clips values outside."""
    return np.clip(np.rint((np.asarray(x) + 1) * 127.5), 0, 255).astype(np.uint8)
