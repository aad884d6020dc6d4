"""Students that inpaint: networks that take a mask and the masked image as a condition."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.inpainting import encoded, masked
from distill_jax.diffusion.spec import INPAINT

Images = jax.Array | np.ndarray  # (num, h, w, c) in [-1, 1].
Finished = Any  # A Student, which imports this file.


def inpaints(student: Finished) -> bool:
    """Returns whether the network takes a mask and the masked image."""
    return INPAINT in dict(student.manifest.spec.cond)


def with_masked(student: Finished, x: Images, mask: Images) -> Finished:
    """Returns the network with images that it inpaints, whatever it draws.

    Args:
      student: a network that inpaints.
      x: images in [-1, 1] (num, h, w, c); values where mask is 1 do not matter.
      mask: 0 or 1, (h, w) or a shape that broadcasts against (num, h, w, 1).

    Raises:
      ValueError: for other networks, and for images or a mask of another shape than in training.
    """
    if not inpaints(student):
        raise ValueError(f"{student.manifest.stage} takes no masked image; call inpaint")
    if x.shape[1:] != student.image_shape:
        raise ValueError(
            f"images are of shape {x.shape[1:]}; this network was trained on {student.image_shape}"
        )
    return dataclasses.replace(student, image=_condition(student, np.asarray(x), as_mask(mask, x)))


def as_mask(mask: Images, x: Images) -> jax.Array:
    """Returns the mask of images as an array that broadcasts against (num, h, w, 1).

    Raises:
      ValueError: for a mask of another shape.
    """
    asked = jnp.asarray(mask[..., None] if mask.ndim == 2 else mask, jnp.float32)
    num, height, width, _ = x.shape
    fits = asked.ndim <= 4 and asked.shape[-3:] == (height, width, 1)[-asked.ndim :]
    if not fits or asked.ndim < 3 or asked.shape[:-3] not in ((), (1,), (num,)):
        raise ValueError(
            f"mask is of shape {mask.shape}, and the images are of shape {x.shape[1:]}; expected "
            f"{(height, width)}, or {(num, height, width, 1)} for a mask of each image"
        )
    return asked


def _condition(student: Finished, x: np.ndarray, mask: Images) -> dict[str, np.ndarray]:
    return {INPAINT: encoded(masked(x, np.asarray(mask)), student.codec.encode)}


def conditions(student: Finished, num: int) -> Mapping[str, np.ndarray]:
    """Returns the condition of the student's masked images; {} for a network that takes none.

    Without images, `num` images are masked as a whole. The network then draws as one that does not
    inpaint, which its training on whole masks taught it.

    Raises:
      ValueError: for another number of images than the student's.
    """
    if not inpaints(student):
        return {}
    if student.image is not None:
        image: Mapping[str, np.ndarray] = student.image
        if len(image[INPAINT]) != num:
            raise ValueError(f"{num} images of a network with {len(image[INPAINT])} masked images")
        return image
    one = _condition(student, np.zeros((1, *student.image_shape)), np.ones(1))
    return {name: np.broadcast_to(x, (num, *x.shape[1:])) for name, x in one.items()}
