"""The autoencoder of Stable Diffusion, with the names of diffusers' AutoencoderKL.

Rombach et al. (2022, arXiv:2112.10752), section 3.1. The path of a parameter, joined by dots, is
the name of its array in a checkpoint of diffusers. Functions take the parameters of both halves.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.models.sd_blocks import Resnet, conv3, group_norm
from distill_jax.models.unet import doubled
from distill_jax.runtime.options import (
    MAX_BLOCKS,
    MAX_WIDTH,
    check_options,
    every,
    option,
    whole,
)
from distill_jax.typing import Image, Resized, Tree

NORM = 1e-6  # Epsilon of the norms.
FLOAT = jnp.dtype("float32")
LOG_VARIANCE = (-30.0, 20.0)  # Bounds of the encoder's output.


@dataclasses.dataclass(frozen=True)
class Layers:
    """The options of an autoencoder's layers; the defaults are Stable Diffusion's.

    Attributes:
      widths: channels of each level, divisible by groups; a level has half the side of the
        previous.
      blocks: residual blocks of a level of the encoder; the decoder has one more.
      channels: channels of the latents.
      groups: groups of the group normalisations.
      quant: whether a 1x1 convolution follows the encoder.
      post_quant: whether a 1x1 convolution precedes the decoder.

    Raises:
      ValueError: when the options do not fit each other.
    """

    widths: tuple[int, ...] = option(every(whole(1, high=MAX_WIDTH), 16, 1), (128, 256, 512, 512))
    blocks: int = option(whole(1, high=MAX_BLOCKS), 2)
    channels: int = option(whole(1, high=MAX_WIDTH), 4)
    groups: int = option(whole(1, high=MAX_WIDTH), 32)
    quant: bool = True
    post_quant: bool = True

    def __post_init__(self) -> None:
        check_options(self)
        if any(width % self.groups for width in self.widths):
            raise ValueError(
                f"widths is {self.widths}; expected multiples of groups = {self.groups}"
            )

    @property
    def factor(self) -> int:
        """The side of an image over the side of its latent."""
        return int(2 ** (len(self.widths) - 1))


class Gaussian(NamedTuple):
    """The distribution of the latents of images: mean and standard deviation, (b, h, w, c)."""

    mean: jax.Array
    std: jax.Array


class Encoder(nn.Module):
    """The encoder, with the convolution behind it; returns mean and logarithm of the variance."""

    layers: Layers

    @nn.compact
    def __call__(self, x: Image) -> jax.Array:
        h = _Down(self.layers, name="encoder")(x)
        if self.layers.quant:
            h = nn.Conv(2 * self.layers.channels, (1, 1), name="quant_conv")(h)
        return h


class Decoder(nn.Module):
    """The decoder, with the convolution before it."""

    layers: Layers

    @nn.compact
    def __call__(self, z: Resized) -> jax.Array:
        if self.layers.post_quant:
            z = nn.Conv(self.layers.channels, (1, 1), name="post_quant_conv")(z)
        return _Up(self.layers, name="decoder")(z)


class _Down(nn.Module):
    """The levels on the way down."""

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        layers = self.layers
        h = conv3(layers.widths[0], FLOAT, "conv_in")(x)
        for level, width in enumerate(layers.widths):
            for block in range(layers.blocks):
                h = _resnet(layers, width, f"down_blocks.{level}.resnets.{block}")(h)
            if level < len(layers.widths) - 1:
                name = f"down_blocks.{level}.downsamplers.0.conv"
                # One pixel of zeros below and to the right only.
                h = nn.Conv(width, (3, 3), (2, 2), ((0, 1), (0, 1)), name=name)(h)
        h = _Middle(layers, name="mid_block")(h)
        h = nn.swish(group_norm(layers.groups, NORM, FLOAT, "conv_norm_out")(h))
        return conv3(2 * layers.channels, FLOAT, "conv_out")(h)


class _Up(nn.Module):
    """The levels on the way up."""

    layers: Layers

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        layers, last = self.layers, len(self.layers.widths) - 1
        h = conv3(layers.widths[last], FLOAT, "conv_in")(z)
        h = _Middle(layers, name="mid_block")(h)
        for level, width in enumerate(reversed(layers.widths)):
            for block in range(layers.blocks + 1):
                h = _resnet(layers, width, f"up_blocks.{level}.resnets.{block}")(h)
            if level < last:
                h = conv3(width, FLOAT, f"up_blocks.{level}.upsamplers.0.conv")(doubled(h))
        h = nn.swish(group_norm(layers.groups, NORM, FLOAT, "conv_norm_out")(h))
        return conv3(3, FLOAT, "conv_out")(h)


class _Middle(nn.Module):
    """Two residual blocks, and an attention of one head between them."""

    layers: Layers

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = _resnet(self.layers, width, "resnets.0")(x)
        h = group_norm(self.layers.groups, NORM, FLOAT, "attentions.0.group_norm")(x)
        h = h.reshape(len(x), -1, 1, width)
        q, k, v = (nn.Dense(width, name=f"attentions.0.to_{part}")(h) for part in "qkv")
        h = jax.nn.dot_product_attention(q, k, v, implementation="xla")
        x += nn.Dense(width, name="attentions.0.to_out.0")(h).reshape(x.shape)
        return _resnet(self.layers, width, "resnets.1")(x)


def _resnet(layers: Layers, width: int, name: str) -> Resnet:
    return Resnet(width, layers.groups, NORM, FLOAT, name=name)


def shapes(layers: Layers) -> Tree:
    """Returns the shapes and dtypes of the parameters of both halves."""
    key, side = jax.random.key(0), layers.factor
    x, z = jnp.zeros((1, side, side, 3)), jnp.zeros((1, 1, 1, layers.channels))
    halves = ((Encoder, x), (Decoder, z))
    down, up = (jax.eval_shape(kind(layers).init, key, like)["params"] for kind, like in halves)
    return {**down, **up}


def encode(layers: Layers, params: Tree, x: Image) -> Gaussian:
    """Returns the distribution of the latents of images (b, h, w, 3) in [-1, 1].

    The sides of the images are multiples of `layers.factor`. Latents are not scaled.
    """
    mean, log_variance = jnp.split(_apply(Encoder(layers), params, x), 2, axis=-1)
    return Gaussian(mean, jnp.exp(jnp.clip(log_variance, *LOG_VARIANCE) / 2))


def decode(layers: Layers, params: Tree, z: Resized, tile: int = 0) -> jax.Array:
    """Returns the images of latents (b, h, w, c) that are not scaled, about in [-1, 1].

    Args:
      layers: layers of the autoencoder.
      params: parameters.
      z: latents.
      tile: side of tiles in latent pixels, from 4. Latents with longer sides are decoded tile by
        tile, and neighbours are blended where they overlap, in a quarter of their side. Memory
        then grows with the tile, and not with the image. 0 decodes whole images.
    """
    height, width = (min(side, tile) if tile else side for side in z.shape[1:3])
    if (height, width) == z.shape[1:3]:
        return _apply(Decoder(layers), params, z)
    f = layers.factor
    rows, columns = _ramps(z.shape[1], height, f), _ramps(z.shape[2], width, f)
    starts = jnp.asarray([(y, x) for y in rows for x in columns])
    weights = [np.outer(a, b) for a in rows.values() for b in columns.values()]

    def add(canvas: jax.Array, given: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        (y, x), weight = given
        part = jax.lax.dynamic_slice(z, (0, y, x, 0), (len(z), height, width, z.shape[3]))
        part = _apply(Decoder(layers), params, part) * weight[..., None]
        place = (0, y * f, x * f, 0)
        before = jax.lax.dynamic_slice(canvas, place, part.shape)
        return jax.lax.dynamic_update_slice(canvas, before + part, place), None

    canvas = jnp.zeros((len(z), z.shape[1] * f, z.shape[2] * f, 3), z.dtype)
    return jax.lax.scan(add, canvas, (starts, jnp.asarray(weights, z.dtype)))[0]


def _ramps(side: int, tile: int, factor: int) -> dict[int, np.ndarray]:
    """Returns where tiles start along a side of the latent, and the weights of their image pixels.

    The weights (tile factor,) rise and fall linearly where tiles overlap. Over all tiles they sum
    to 1 in every pixel.
    """
    overlap = max(tile // 4, 1)
    starts = [*range(0, side - tile, tile - overlap), side - tile]
    places = np.arange(tile * factor) + 0.5
    ramp = np.minimum(np.minimum(places, places[::-1]), overlap * factor)
    total = np.zeros(side * factor)
    for start in starts:
        total[start * factor :][: len(ramp)] += ramp
    return {start: ramp / total[start * factor :][: len(ramp)] for start in starts}


def _apply(module: nn.Module, params: Tree, x: jax.Array) -> jax.Array:
    found: Any = module.apply({"params": params}, x)
    return found
