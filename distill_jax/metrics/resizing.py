"""The resizes of feature networks; each is a protocol of its own, and FID differs between them.

All of them are linear along each axis, so an image is multiplied by one matrix an axis.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

RESIZES = ("tf1", "bilinear", "bicubic", "bicubic8")


@functools.partial(jax.jit, static_argnums=(1, 2))
def resize(x: jax.Array, method: str, side: int) -> jax.Array:
    """Returns images (b, side, side, c), float32 from 0 to 255, of images (b, h, w, c).

    Args:
      x: images from 0 to 255, uint8 or float32.
      method: "tf1": bilinear as TensorFlow 1 has it, in the graph of FID's Inception and of ADM's
        and EDM's evaluations: pixel i of the result lies at i * h / side, without antialiasing.
        "bilinear": PyTorch's, in pytorch-fid: centres of pixels are aligned, no antialiasing.
        "bicubic": Pillow's, in clean-fid: antialiased, clipped to 0 .. 255.
        "bicubic8": Pillow's of bytes, in dgm-eval, CLIP's and CMMD's: the same, rounded after each
        axis; sums that are nearly half a level may be rounded to the other side.
      side: side of the results.
    """
    rows, columns = (matrix(method, size, side) for size in x.shape[1:3])
    x = x.astype(jnp.float32)
    # Pillow resizes rows first.
    x = jnp.einsum("bhwc,tw->bhtc", x, columns, precision="highest")
    x = jnp.clip(jnp.floor(x + 0.5), 0, 255) if method == "bicubic8" else x
    x = jnp.einsum("bhtc,sh->bstc", x, rows, precision="highest")
    x = jnp.floor(x + 0.5) if method == "bicubic8" else x
    return jnp.clip(x, 0, 255) if method.startswith("bicubic") else x


def central_square(x: jax.Array) -> jax.Array:
    """Returns the central square (b, n, n, c) of images (b, h, w, c)."""
    n = min(x.shape[1:3])
    top, left = ((size - n) // 2 for size in x.shape[1:3])
    return x[:, top : top + n, left : left + n]


def matrix(method: str, size: int, side: int) -> np.ndarray:
    """Returns the float32 matrix (side, size) that resizes an axis; see `resize`."""
    if method not in RESIZES:
        raise ValueError(f"unknown resize {method!r}; known: {', '.join(RESIZES)}")
    if method.startswith("bicubic"):
        return _bicubic(size, side)
    scale = np.float32(size / side)
    if method == "tf1":
        where = np.arange(side, dtype=np.float32) * scale
    else:  # PyTorch rounds once, after the subtraction.
        where = np.maximum((np.arange(side) + 0.5) * np.float64(scale) - 0.5, 0).astype(np.float32)
    low = np.minimum(np.floor(where).astype(int), size - 1)
    high, share = np.minimum(low + 1, size - 1), where - low
    found = np.zeros((side, size), np.float32)
    np.add.at(found, (np.arange(side), low), 1 - share)
    np.add.at(found, (np.arange(side), high), share)
    return found


def _bicubic(size: int, side: int) -> np.ndarray:
    """Returns Keys' cubic kernel (1981), a = -1/2, stretched over the pixels that it averages."""
    scale = size / side
    stretch = max(scale, 1.0)
    centre = (np.arange(side)[:, None] + 0.5) * scale
    pixel = np.arange(size)[None] + 0.5
    # Pillow takes the pixels whose rounded distance is within the support.
    inside = (pixel > np.floor(centre - 2 * stretch + 0.5)) & (
        pixel < np.floor(centre + 2 * stretch + 0.5)
    )
    x = np.abs(pixel - centre) / stretch
    near, far = (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    kernel = np.where(x < 1, near, np.where(x < 2, far, 0.0)) * inside
    return (kernel / kernel.sum(1, keepdims=True)).astype(np.float32)
