"""EDM's augmentation of training images, and the labels that tell a network what was done.

Karras et al. (2022, arXiv:2206.00364), appendix F.2 and Table 6. The labels are all 0 for an image
that stays as it is, which is what a network gets in sampling.
"""

import functools
import math

import jax
import jax.numpy as jnp

from distill_jax.typing import Image

AUGMENT = "augment"  # The condition with the labels.
LABELS = 9
SCALE_STD = 0.2  # Of log2 of the factors of isotropic and of anisotropic scaling.
SHIFT_STD = 0.125  # Of the translation, as a share of the side.


def augment(key: jax.Array, x: Image, probability: float) -> tuple[Image, jax.Array]:
    """Flips, scales, rotates and moves images (b, h, w, c), each with its own draws.

    Half of the images are mirrored, x[:, :, ::-1]. Each of these happens with `probability`: the
    rows are flipped (for half of the chosen), 2^(0.2 n) scales the image, an angle from the whole
    circle turns it, 2^(0.2 n) and its inverse scale two orthogonal directions (at a random angle
    for half of the chosen), and 0.125 n of the sides move it, with n ~ N(0, 1).

    The released code samples through an upsampling by a wavelet filter. Here one bilinear sampling
    does all but the flips, which are exact; it is smoother by up to half a pixel. Beyond an edge
    the image is reflected.

    Args:
      key: PRNG key.
      x: images.
      probability: probability in [0, 1] of each change but the mirroring; EDM has 0.12 for CIFAR-10
        and 0.15 for FFHQ and AFHQ.

    Returns:
      The images, and their labels (b, 9): mirrored, flipped, n of the scaling, cos - 1 and sin of
      the rotation, n of the anisotropic scaling times cos and sin of its angle, n of the two
      translations (right, down). As in the paper, n of the anisotropic scaling and -n at the
      opposite angle have the same labels.
    """
    coins, keys = jax.random.split(key, 8), jax.random.split(jax.random.fold_in(key, 1), 6)
    rows = x.shape[:1]

    def chosen(i: int, value: jax.Array, share: float = probability) -> jax.Array:
        return jnp.where(jax.random.bernoulli(coins[i], share, rows), value, 0.0)

    def angle(i: int) -> jax.Array:
        return jax.random.uniform(keys[i], rows, x.dtype, -math.pi, math.pi)

    one = jnp.ones(rows, x.dtype)
    mirrored = chosen(0, one, 0.5)
    flipped = chosen(1, chosen(2, one, 0.5))
    scale = chosen(3, jax.random.normal(keys[0], rows, x.dtype))
    turn = chosen(4, angle(1))
    stretch = chosen(5, jax.random.normal(keys[2], rows, x.dtype))
    along = chosen(6, angle(3), 0.5)
    moved = jax.random.bernoulli(coins[7], probability, rows)
    right, down = (jnp.where(moved, jax.random.normal(keys[i], rows, x.dtype), 0.0) for i in (4, 5))
    bits = (mirrored, flipped, scale, jnp.cos(turn) - 1, jnp.sin(turn))
    labels = (*bits, stretch * jnp.cos(along), stretch * jnp.sin(along), right, down)

    x = jnp.where(mirrored[:, None, None, None] > 0, x[:, :, ::-1], x)
    x = jnp.where(flipped[:, None, None, None] > 0, x[:, ::-1], x)
    factor = 2 ** (SCALE_STD * stretch)
    smaller = 2 ** (-SCALE_STD * scale)
    around = _rotation(-along), _diagonal(1 / factor, factor), _rotation(along)
    product = functools.partial(jnp.matmul, precision="highest")
    matrix = functools.reduce(product, (_diagonal(smaller, smaller), _rotation(turn), *around))
    height, width = x.shape[1:3]
    shift = jnp.stack([right * width, down * height], axis=-1) * SHIFT_STD
    return warped(x, matrix, shift), jnp.stack(labels, axis=-1)


def _rotation(theta: jax.Array) -> jax.Array:
    """Returns the matrices (b, 2, 2) that turn (right, down) by theta."""
    cos, sin = jnp.cos(theta), jnp.sin(theta)
    return jnp.stack([jnp.stack([cos, -sin], -1), jnp.stack([sin, cos], -1)], -2)


def _diagonal(first: jax.Array, second: jax.Array) -> jax.Array:
    """Returns the diagonal matrices (b, 2, 2)."""
    return jnp.stack([first, second], -1)[:, None] * jnp.eye(2, dtype=first.dtype)


def warped(x: Image, matrix: jax.Array, shift: jax.Array) -> Image:
    """Returns y with y(p) = x(matrix (p - shift)), sampled bilinearly and reflected at the edges.

    Args:
      x: images (b, h, w, c).
      matrix: (b, 2, 2), on positions (right, down) in pixels from the centre of the image.
      shift: (b, 2), in pixels.
    """
    height, width = x.shape[1:3]
    middle = jnp.asarray([(width - 1) / 2, (height - 1) / 2], x.dtype)
    grid = jnp.stack(jnp.meshgrid(jnp.arange(width), jnp.arange(height)), -1).astype(x.dtype)
    centred = grid - middle - shift[:, None, None]
    # A sum, because accelerators round the factors of a matrix product.
    there = jnp.sum(matrix[:, None, None] * centred[..., None, :], axis=-1) + middle
    right, down = (_reflected(there[..., i], n) for i, n in enumerate((width, height)))
    column, row = (jnp.floor(p).astype(jnp.int32) for p in (right, down))
    part_x, part_y = (p - jnp.floor(p) for p in (right, down))
    total = jnp.zeros_like(x)
    for i in (0, 1):
        for j in (0, 1):
            weight = (part_y if i else 1 - part_y) * (part_x if j else 1 - part_x)
            near = jnp.minimum(row + i, height - 1), jnp.minimum(column + j, width - 1)
            total += weight[..., None] * jax.vmap(lambda y, r, c: y[r, c])(x, *near)
    return total


def _reflected(p: jax.Array, size: int) -> jax.Array:
    """Returns positions reflected into [0, size - 1] at the first and the last pixel."""
    last = max(size - 1, 1)
    p = jnp.abs(p) % (2 * last)
    return jnp.minimum(jnp.where(p > last, 2 * last - p, p), size - 1)
