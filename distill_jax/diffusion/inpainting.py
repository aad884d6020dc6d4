"""The condition of a network that inpaints: where the image is new, and the rest of it.

It is that of Stable Diffusion's inpainting networks in diffusers: the mask, 1 where the image is
new, and behind it the latent of the image with 0 (grey) there. On a grid of latents, a place has
the mask of the first pixel of its patch: torch's nearest neighbour.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.spec import INPAINT, DataSpec, Leaf
from distill_jax.typing import Image, Resized


def with_inpainting(data: DataSpec) -> DataSpec:
    """Returns the spec with the condition INPAINT (h, w, 1 + c) of its x (h, w, c)."""
    *sides, channels = data.x.shape
    return data._replace(cond=(*data.cond, (INPAINT, Leaf((*sides, 1 + channels)))))


def masked(x: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns the condition of images in pixels.

    Args:
      x: images in [-1, 1] (b, h, w, c).
      mask: above 0 where the image is new; broadcasts against (b, h, w, 1).
    """
    new = np.broadcast_to(mask > 0, (*x.shape[:-1], 1))
    return np.concatenate([new, np.where(new, 0, x)], axis=-1, dtype=np.float32)


def encoded(condition: np.ndarray, encode: Callable[[Image], Resized]) -> np.ndarray:
    """Returns the condition in latents of the condition in pixels, see `masked`."""
    z = np.asarray(encode(jnp.asarray(condition[..., 1:])))
    rows, columns = (n // m for n, m in zip(condition.shape[1:3], z.shape[1:3], strict=True))
    return np.concatenate([condition[:, ::rows, ::columns, :1], z], axis=-1)
