"""Resizing of images by two small matrices, one for the rows and one for the columns."""

import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from distill_jax.typing import Image, Resized

CUBIC = -0.75  # The parameter a of Keys' cubic kernel, see `bicubic`.


def bicubic(x: Image, side: int) -> Resized:
    """Enlarges images (b, h, w, c) to height `side`, the width in proportion.

        x_i = sum_j k(j - u) x_j along each axis,   u = (i + 1/2) h / side - 1/2,
        k(d) = (a + 2) |d|^3 - (a + 3) |d|^2 + 1,   |d| <= 1
             = a |d|^3 - 5 a |d|^2 + 8 a |d| - 4 a,   1 < |d| < 2

    with a = -0.75, and the edge pixel repeated beyond the edge (Keys 1981,
    doi:10.1109/TASSP.1981.1163711). The value of a and the edges are those of torch's "bicubic",
    the upscaling of Starodubcev et al. (2026, arXiv:2503.16397); jax.image's "cubic" has a = -0.5
    and other edges. To shrink images, where this function skips pixels, use `area`.
    """
    return _resize(x, side, cubic_matrix)


def area(x: Image, side: int) -> Resized:
    """Shrinks images (b, h, w, c) to height `side` <= h by adaptive average pooling.

    Pixel i is the mean of the whole pixels floor(i h / side) .. ceil((i + 1) h / side) - 1, so
    windows overlap if h / side is not a whole number.

    Raises:
      ValueError: for a side above h.
    """
    if side > x.shape[1]:
        raise ValueError(
            f"images of {x.shape[1]} pixels cannot be averaged to {side}; take sides up to "
            f"{x.shape[1]}"
        )
    return _resize(x, side, area_matrix)


def width_at(x: Image, side: int) -> int:
    """Returns the width of images (b, h, w, c) that are resized to height `side`.

    Raises:
      ValueError: if the width is not a whole number of at least 1.
    """
    width, rest = divmod(x.shape[2] * side, x.shape[1])
    if rest or side < 1:
        raise ValueError(
            f"images {x.shape[1]}x{x.shape[2]} have no whole width at height {side}; take sides "
            f"from 1 that {x.shape[1] // math.gcd(x.shape[1], x.shape[2])} divides"
        )
    return width


@functools.cache
def cubic_matrix(side: int, other: int, step: float | None = None) -> np.ndarray:
    """Returns the float64 matrix (other, side) of `bicubic`; its rows sum to 1.

    Args:
      side: number of pixels before.
      other: number of pixels after.
      step: distance of two new pixels, side / other by default.
    """
    centre = np.arange(other) + 0.5
    u = (centre * side / other if step is None else centre * step) - 0.5
    first = np.floor(u).astype(int)
    matrix = np.zeros((other, side))
    for tap in range(-1, 3):
        near = np.clip(first + tap, 0, side - 1)
        np.add.at(matrix, (np.arange(other), near), _keys(first + tap - u))
    return matrix


def _keys(d: np.ndarray) -> np.ndarray:
    """Returns Keys' kernel k(d) for |d| < 2, see `bicubic`."""
    a, d = CUBIC, np.abs(d)
    inner = ((a + 2) * d - (a + 3)) * d**2 + 1
    return np.where(d <= 1, inner, a * (((d - 5) * d + 8) * d - 4))


@functools.cache
def area_matrix(side: int, other: int) -> np.ndarray:
    """Returns the float64 matrix (other, side) of `area`; its rows sum to 1."""
    i, j = np.arange(other)[:, None], np.arange(side)
    inside = (j >= i * side // other) & (j < -(-(i + 1) * side // other))
    return inside / inside.sum(axis=1, keepdims=True)


def _resize(x: Image, side: int, matrix_of: Callable[[int, int], np.ndarray]) -> Resized:
    """Applies the matrices of `matrix_of` to rows and columns; returns x if it has that side."""
    width = width_at(x, side)
    if side == x.shape[1]:
        return x
    rows = jnp.asarray(matrix_of(x.shape[1], side), x.dtype)
    columns = jnp.asarray(matrix_of(x.shape[2], width), x.dtype)
    # With a lower precision accelerators round the factors.
    return jnp.einsum("ih,bhwc,jw->bijc", rows, x, columns, precision="highest")
