"""The pixel UNet of the progressive distillation papers, parameter for parameter.

This is the released network of Salimans & Ho (2022), Progressive Distillation, arXiv:2202.00512.
It has the same parameter names, so that their checkpoints load unchanged. Labels enter as one-hot
vectors, and the null label as the zero vector, which adds no parameter.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Network
from distill_jax.diffusion.spec import Spec
from distill_jax.models.layers import (
    ATTENTION_KERNELS,
    DTYPES,
    REMAT,
    as_network,
    attention,
    check_halvings,
    modulate,
    remat,
    sinusoid,
    with_numbers,
    zeros,
)
from distill_jax.models.norms import GroupNorm
from distill_jax.models.residual_unet import DROPOUT
from distill_jax.runtime.options import (
    MAX_BLOCKS,
    MAX_W,
    MAX_WIDTH,
    check_options,
    choice,
    every,
    number,
    option,
    optional,
    takes_fields,
    whole,
)
from distill_jax.typing import Cond, Image, Output, Time

# Functions logsnr -> u, the number to embed; inv_cos is the time of the cosine schedule.
LOGSNR_INPUTS = {
    "inv_cos": lambda logsnr: jnp.arctan(jnp.exp(-logsnr / 2)) / (math.pi / 2),
    "sigmoid": jax.nn.sigmoid,
    "linear": lambda logsnr: (logsnr + 10) / 20,
}


MULTIPLIERS = every(whole(1, high=64), 16, 1)._replace(expected="a number from 1 for each level")
HEADS = optional(whole(1, high=MAX_WIDTH))


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The options of the UNet, checked against each other.

    Attributes:
      spec: spec of the images and conditions; label num_classes is the null label.
      channels: width of the first level, divisible by 32 (the groups of every normalisation).
      embedding: width of the embedding of times and conditions, even; usually 4 channels.
      multipliers: width of each level over `channels`; a level has half the side of the previous.
      blocks: residual blocks of a level on the way down; there is one more on the way up.
      attention: sides, at the size of `spec`, of the levels where attention follows each block.
      heads: number of heads of every attention; None if head_dim is set.
      head_dim: channels of a head; None if heads is set.
      dropout: probability in [0, 1) inside every residual block; it is active if a key is passed.
      resblock_resample: whether residual blocks change the resolution, or single convolutions.
      logsnr_input: a name in LOGSNR_INPUTS.
      dtype: type of the computation, "float32" or "bfloat16"; parameters, statistics of the
        normalisations, softmax, embeddings and the output are float32.
      remat: activations that blocks store for the backward pass: "none", "dots", "full", see
        layers.remat.
      attention_kernel: kernel of the attention, "auto", "xla" or "cudnn", see layers.attention.
      w_scale: the w whose embedding is that of t = 1.

    Raises:
      ValueError: when the options do not fit each other.
    """

    spec: Spec
    channels: int = option(whole(32, 32, MAX_WIDTH))
    embedding: int = option(whole(4, 2, MAX_WIDTH))
    multipliers: tuple[int, ...] = option(MULTIPLIERS)
    blocks: int = option(whole(1, high=MAX_BLOCKS))
    attention: tuple[int, ...]  # type: ignore[misc]  # None of those above has a default.
    heads: int | None = option(HEADS, None)
    head_dim: int | None = option(HEADS, None)
    dropout: float = option(DROPOUT, 0.0)
    resblock_resample: bool = True
    logsnr_input: str = option(choice(LOGSNR_INPUTS), "inv_cos")
    dtype: str = option(choice(DTYPES), "float32")
    remat: str = option(choice(REMAT), "none")
    attention_kernel: str = option(choice(ATTENTION_KERNELS), "auto")
    w_scale: float = option(number(0, MAX_W, without=(0,)), 4.0)

    def __post_init__(self) -> None:
        check_options(self)
        self._check_resolutions()
        self._check_heads()

    def _check_resolutions(self) -> None:
        """Raises ValueError unless the image is square and fits the levels and `attention`."""
        height, width = self.spec.shape[:2]
        factor = 2 ** (len(self.multipliers) - 1)
        if height != width or height % factor:
            raise ValueError(
                f"the image is {height}x{width}; expected a square whose side "
                f"{len(self.multipliers)} levels can halve, a multiple of {factor}"
            )
        if not set(self.attention) <= set(self.sides):
            raise ValueError(
                f"attention is {self.attention}; expected sides that levels of this network have: "
                f"{', '.join(map(str, self.sides))}"
            )

    def _check_heads(self) -> None:
        """Raises ValueError unless heads, or head_dim, divide the channels of every attention."""
        if (self.heads is None) == (self.head_dim is None):
            raise ValueError(
                f"heads is {self.heads} and head_dim {self.head_dim}; set one of them and leave "
                "the other None"
            )
        name = "heads" if self.head_dim is None else "head_dim"
        by: int = getattr(self, name)
        # The middle always has attention, at the sides of the last level.
        for side, multiplier in zip(self.sides, self.multipliers, strict=True):
            width = multiplier * self.channels
            if side in (*self.attention, self.sides[-1]) and width % by:
                raise ValueError(
                    f"{name} is {by}; expected a divisor of the {width} channels at side {side}"
                )

    @property
    def sides(self) -> tuple[int, ...]:
        """Side of the image at every level."""
        return tuple(self.spec.shape[0] >> level for level in range(len(self.multipliers)))


def unchanged(h: jax.Array) -> jax.Array:
    """Returns h."""
    return h


def halved(h: jax.Array) -> jax.Array:
    """Returns the means over 2x2 pixels: (b, h, w, c) -> (b, h/2, w/2, c)."""
    batch, height, width, channels = h.shape
    return h.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))


def doubled(h: jax.Array) -> jax.Array:
    """Repeats every pixel 2x2: (b, h, w, c) -> (b, 2h, 2w, c)."""
    return h.repeat(2, axis=1).repeat(2, axis=2)


class ResBlock(nn.Module):
    """A residual block of two convolutions, modulated by the embedding; optional resampling."""

    channels: int
    arch: Architecture
    resample: Callable[[jax.Array], jax.Array] = unchanged

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        dtype = jnp.dtype(self.arch.dtype)
        h = self.resample(nn.swish(GroupNorm(dtype=dtype, name="norm1")(x)))
        x = self.resample(x)
        h = nn.Conv(self.channels, (3, 3), dtype=dtype, name="conv1")(h)

        mod = nn.Dense(2 * self.channels, dtype=dtype, name="temb_proj")(nn.swish(emb))
        scale, shift = jnp.split(mod[:, None, None], 2, axis=-1)
        h = nn.swish(modulate(GroupNorm(dtype=dtype, name="norm2")(h), shift, scale))
        h = nn.Dropout(self.arch.dropout, deterministic=not self.has_rng("dropout"))(h)
        h = nn.Conv(self.channels, (3, 3), kernel_init=zeros, dtype=dtype, name="conv2")(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=dtype, name="nin_shortcut")(x)
        return x + h


class Attention(nn.Module):
    """Self-attention over the pixels of x, plus x."""

    arch: Architecture

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dtype, channels = jnp.dtype(self.arch.dtype), x.shape[-1]
        heads = self.arch.heads or channels // self.arch.head_dim  # type: ignore[operator]  # One of them is set.
        h = GroupNorm(dtype=dtype, name="norm")(x).reshape(x.shape[0], -1, channels)
        shape = (heads, channels // heads)
        q, k, v = (nn.DenseGeneral(shape, dtype=dtype, name=name)(h) for name in "qkv")
        h = attention(q, k, v, self.arch.attention_kernel)
        h = nn.DenseGeneral(
            channels, axis=(-2, -1), kernel_init=zeros, dtype=dtype, name="proj_out"
        )(h)
        return x + h.reshape(x.shape)


class UNet(nn.Module):
    """The network: levels on the way down, the middle, and levels up with skip connections."""

    arch: Architecture

    @nn.compact
    def __call__(self, z: Image, t: Time, cond: Cond) -> Output:
        arch, dtype = self.arch, jnp.dtype(self.arch.dtype)
        widths = [arch.channels * multiplier for multiplier in arch.multipliers]
        last = len(widths) - 1
        check_halvings(z.shape[1:3], last)
        emb = self._embed(t, cond)

        h = nn.Conv(arch.channels, (3, 3), dtype=dtype, name="conv_in")(z)
        skips = [h]
        for level, width in enumerate(widths):
            for block in range(arch.blocks):
                h = self._blocks(h, emb, width, ("down", level, block))
                skips.append(h)
            if level < last:
                h = self._resample(h, emb, halved, f"down_{level}.downsample")
                skips.append(h)

        h = self._block(h, emb, widths[last], "mid.block_1")
        h = self._attend(h, "mid.attn_1")
        h = self._block(h, emb, widths[last], "mid.block_2")
        self.sow("features", "middle", h.reshape(h.shape[0], -1, widths[last]))

        for level, width in reversed(list(enumerate(widths))):
            for block in range(arch.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._blocks(h, emb, width, ("up", level, block))
            if level > 0:
                h = self._resample(h, emb, doubled, f"up_{level}.upsample")

        h = nn.swish(GroupNorm(dtype=dtype, name="norm_out")(h))
        # In float32, which is cheap for three or six channels and avoids rounding the output.
        out = nn.Conv(arch.spec.channels_out, (3, 3), kernel_init=zeros, name="conv_out")
        return out(h.astype(jnp.float32))

    def _embed(self, t: Time, cond: Cond) -> jax.Array:
        """Returns one float32 vector per example, which embeds noise level and conditions."""
        arch = self.arch
        # The released schedule ends at +-20; other schedules may be infinite at their ends.
        logsnr = jnp.clip(arch.spec.schedule.logsnr(t), -20.0, 20.0)
        emb = sinusoid(LOGSNR_INPUTS[arch.logsnr_input](logsnr), arch.channels)
        emb = nn.Dense(arch.embedding, name="dense0")(emb)
        emb = nn.Dense(arch.embedding, name="dense1")(nn.swish(emb))
        if "label" in cond:
            label = jax.nn.one_hot(cond["label"], arch.spec.classes("label"))
            emb += nn.Dense(arch.embedding, name="class_emb")(label)
        return with_numbers(emb, cond, arch.w_scale)

    def _blocks(
        self, h: jax.Array, emb: jax.Array, width: int, place: tuple[str, int, int]
    ) -> jax.Array:
        """Applies a residual block, and attention if the level has it at the size of `spec`."""
        way, level, block = place
        h = self._block(h, emb, width, f"{way}_{level}.block_{block}")
        if self.arch.sides[level] in self.arch.attention:
            h = self._attend(h, f"{way}_{level}.attn_{block}")
        return h

    def _block(self, h: jax.Array, emb: jax.Array, width: int, name: str) -> jax.Array:
        """Applies one residual block."""
        return self._remat(ResBlock)(width, self.arch, name=name)(h, emb)

    def _attend(self, h: jax.Array, name: str) -> jax.Array:
        """Applies attention over all pixels."""
        return self._remat(Attention)(self.arch, name=name)(h)

    def _resample(
        self, h: jax.Array, emb: jax.Array, resample: Callable[[jax.Array], jax.Array], name: str
    ) -> jax.Array:
        """Halves or doubles the sides."""
        width = h.shape[-1]
        if self.arch.resblock_resample:
            return self._remat(ResBlock)(width, self.arch, resample, name=name)(h, emb)
        strides = (2, 2) if resample is halved else (1, 1)
        h = h if resample is halved else resample(h)
        dtype = jnp.dtype(self.arch.dtype)
        return nn.Conv(width, (3, 3), strides=strides, dtype=dtype, name=name)(h)

    def _remat(self, block: type[nn.Module]) -> type[nn.Module]:
        """Returns the module with the rematerialisation of arch.remat."""
        return remat(block, self.arch.remat)


@takes_fields(Architecture)
def unet(spec: Spec, **options: Any) -> Network:
    """Returns the UNet for the images of a spec.

    With the same parameters it also takes images of other sizes, if its levels can halve their
    sides; attention stays at the same levels.

    Args:
      spec: spec of the images and conditions.
      **options: the other attributes of Architecture.

    Raises:
      ValueError: when the options do not fit the spec or each other.
    """
    arch = Architecture(spec, **options)
    return as_network(UNet(arch), features=True, policy=arch.remat)
