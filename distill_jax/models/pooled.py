"""The head that tells noisy data from noisy samples by the features of a diffusion network."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Head
from distill_jax.typing import Time, Tree

LAYERS = 4
EPSILON = 1e-5  # PyTorch's default, as is the exact GELU.


class PooledDiscriminator(nn.Module):
    """The mean over positions, then layers that narrow evenly to one number."""

    @nn.compact
    def __call__(self, features: jax.Array) -> Time:
        h = features.mean(axis=1)
        for layer, width in enumerate(widths(h.shape[-1])[1:]):
            h = nn.gelu(nn.LayerNorm(EPSILON, name=f"norm_{layer}")(h), approximate=False)
            h = nn.Dense(width, name=f"dense_{layer}")(h)
        return h[:, 0]


def widths(channels: int) -> tuple[int, ...]:
    """From `channels` to 1 in even steps, rounded down: what enters each layer, and the logit.

    A layer takes 3 numbers or more, for a normalisation of 2 keeps nothing but signs.

    Raises:
      ValueError: for so few channels that most layers would be as narrow as that.
    """
    if channels < 6:
        raise ValueError(
            f"the features have {channels} channels, too few for a discriminator; expected at "
            "least 6: take a wider network"
        )
    return (*(max(1 + k * (channels - 1) // LAYERS, 3) for k in range(LAYERS, 0, -1)), 1)


def pooled_head() -> Head:
    """Mean over positions, then 4 x (LayerNorm, GELU, Linear) of widths linspace(C, 1, 5).

    Starodubcev et al. (2025), Scale-wise Distillation of Diffusion Models, arXiv:2503.16397, as
    released.
    """
    return as_head(lambda features: PooledDiscriminator())


def as_head(make: Callable[[jax.Array], nn.Module]) -> Head:
    """The functions of the module that is made for features (b, positions, channels)."""

    def init(key: jax.Array, features: jax.Array) -> Tree:
        return make(features).init(key, features)["params"]

    def apply(params: Tree, features: jax.Array) -> Time:
        return make(features).apply({"params": params}, features.astype(jnp.float32))  # type: ignore[return-value]  # One array.

    return Head(init, apply)
