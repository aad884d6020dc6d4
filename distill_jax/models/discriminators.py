"""Discriminator heads by name, as functions of the images' shape."""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Head
from distill_jax.models.norms import GroupNorm
from distill_jax.models.pooled import as_head, pooled_head
from distill_jax.typing import Time, Tree

# PyTorch's initialisation of convolutions: uniform, of variance 1 / (3 fan_in).
uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class SpatialDiscriminator(nn.Module):
    """Two strided, normalised convolutions, and the mean of one logit per remaining position.

    Attributes:
      grid: (rows, columns) of the features' positions.
    """

    grid: tuple[int, int]

    @nn.compact
    def __call__(self, features: jax.Array) -> Time:
        channels = features.shape[-1]
        h = features.reshape(-1, *self.grid, channels)
        # A side of one position cannot be halved.
        taps, pads = zip(*((4, 1) if side > 1 else (1, 0) for side in self.grid), strict=True)
        padding = [(pad, pad) for pad in pads]
        h = nn.Conv(channels, taps, 2, padding, kernel_init=uniform, name="conv_0")(h)
        h = nn.swish(self._norm(h, "norm_0"))
        taps = tuple(min(4, side) for side in h.shape[1:3])
        h = nn.Conv(channels, taps, taps, "VALID", kernel_init=uniform, name="conv_1")(h)
        h = nn.swish(self._norm(h, "norm_1"))
        h = nn.Conv(1, (1, 1), kernel_init=uniform, name="logit")(h)
        return h.mean(axis=(1, 2, 3))

    def _norm(self, h: jax.Array, name: str) -> jax.Array:
        """Applies a group normalisation."""
        groups = groups_of(h.shape[-1])
        return GroupNorm(groups, epsilon=1e-5, use_fast_variance=False, name=name)(h)


def groups_of(channels: int) -> int:
    """Returns the groups of a normalisation: the largest divisor up to 32 with 4 channels each.

    Raises:
      ValueError: for fewer than 4 channels, where a normalised group would keep little but signs.
    """
    if channels < 4:
        raise ValueError(
            f"the features have {channels} channels, too few for a discriminator; expected at "
            "least 4: take a wider network"
        )
    return max(n for n in range(1, 33) if channels % n == 0 and channels // n >= 4)


def grid_of(positions: int, shape: tuple[int, ...]) -> tuple[int, int]:
    """Returns the (rows, columns) of the positions on images (h, w, c): rows / columns = h / w.

    Raises:
      ValueError: when there is no such grid.
    """
    height, width = shape[:2]
    if positions == 1:
        return 1, 1
    rows = max(math.isqrt(positions * height // width), 1)
    columns = positions // rows
    if (rows * columns, rows * width) != (positions, columns * height):
        raise ValueError(
            f"the features have {positions} positions, which are no grid over images of "
            f"{height}x{width}; take discriminator 'pooled', which needs none"
        )
    return rows, columns


def spatial_head(shape: tuple[int, ...]) -> Head:
    """Returns the head of DMD2: 4x4 convolutions of stride 2 and 4, a 1x1 convolution, one logit.

    GroupNorm of 32 groups and SiLU follow the first two convolutions. Yin et al. (2024,
    arXiv:2405.14867), as released for ImageNet 64 (edm_guidance.py), on features of 8x8 positions
    and 768 channels. On smaller grids the second kernel has the size of its input. On larger grids
    the logit is the mean over positions. For features of one position the convolutions are dense
    layers. Fewer than 128 channels are in groups of at least 4.

    Args:
      shape: shape (h, w, c) of the images; the features are a grid of positions on them.
    """
    return as_head(lambda features: SpatialDiscriminator(grid_of(features.shape[1], shape)))


def channels_head() -> Head:
    """Returns the head of SiDA without parameters: the mean of the features is the logit.

    Zhou et al. (2024, arXiv:2410.14919): a logit for each position is the mean over channels there.
    Here the logit of an image is the mean over positions too.
    """

    def apply(params: Tree, features: jax.Array) -> Time:
        return features.astype(jnp.float32).mean(axis=(1, 2))

    return Head(lambda key, features: {}, apply)


DISCRIMINATORS: dict[str, Callable[[tuple[int, ...]], Head]] = {
    "channels": lambda shape: channels_head(),
    "pooled": lambda shape: pooled_head(),  # The head of SwD, for images of any shape.
    "spatial": spatial_head,
}
