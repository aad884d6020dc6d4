"""The discriminator head of SwD, on the pooled features of a diffusion network."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Head
from distill_jax.typing import Time, Tree

LAYERS = 4
EPSILON = 1e-5  # PyTorch's default, as is the exact GELU.


class PooledDiscriminator(nn.Module):
    """The mean over positions, then layers of evenly decreasing width down to one logit."""

    @nn.compact
    def __call__(self, features: jax.Array) -> Time:
        h = features.mean(axis=1)
        for layer, width in enumerate(widths(h.shape[-1])[1:]):
            h = nn.gelu(nn.LayerNorm(EPSILON, name=f"norm_{layer}")(h), approximate=False)
            h = nn.Dense(width, name=f"dense_{layer}")(h)
        return h[:, 0]


def widths(channels: int) -> tuple[int, ...]:
    """Returns the input width of each layer, in even steps from `channels` down to the logit's 1.

    Widths are rounded down, but at least 3, because a normalisation of 2 numbers keeps only signs.

    Raises:
      ValueError: for so few channels that most layers would have the least width.
    """
    if channels < 6:
        raise ValueError(
            f"the features have {channels} channels, too few for a discriminator; expected at "
            "least 6: take a wider network"
        )
    return (*(max(1 + k * (channels - 1) // LAYERS, 3) for k in range(LAYERS, 0, -1)), 1)


def pooled_head() -> Head:
    """Returns SwD's head: mean over positions, 4 x (LayerNorm, GELU, Linear), linspace(C, 1, 5).

    Starodubcev et al. (2025), Scale-wise Distillation of Diffusion Models, arXiv:2503.16397, as
    released.
    """
    return as_head(lambda features: PooledDiscriminator())


def as_head(make: Callable[[jax.Array], nn.Module]) -> Head:
    """Returns the Head of a module, which `make` makes for features (b, positions, channels)."""

    def init(key: jax.Array, features: jax.Array) -> Tree:
        return make(features).init(key, features)["params"]

    def apply(params: Tree, features: jax.Array) -> Time:
        return make(features).apply({"params": params}, features.astype(jnp.float32))  # type: ignore[return-value]  # One array.

    return Head(init, apply)
