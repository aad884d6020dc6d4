"""The residual UNet of foreign teachers: resampling, residual blocks, attention, skip connections.

Karras et al. (2022, arXiv:2206.00364), appendix F.2, write the UNets of Song et al. (2021,
arXiv:2011.13456) and Dhariwal & Nichol (2021, arXiv:2105.05233) in this common form. The two
families differ in their embeddings (song_unet.py, adm_unet.py) and in the constants of an
Architecture.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.diffusion.spec import Spec
from distill_jax.models.layers import (
    ATTENTION_KERNELS,
    DTYPES,
    REMAT,
    attention,
    check_halvings,
    modulate,
    remat,
    zeros,
)
from distill_jax.models.norms import GroupNorm
from distill_jax.runtime.options import (
    MAX_BLOCKS,
    MAX_W,
    MAX_WIDTH,
    check_options,
    choice,
    every,
    number,
    option,
    whole,
)
from distill_jax.typing import Image, Output, Time

Taps = tuple[int, ...]
DROPOUT = number(0, 1, without=(1,))._replace(expected="a probability in [0, 1)")
MULTIPLIERS = every(number(0, 64, without=(0,)), 16, 1)._replace(
    expected="a positive number for each level"
)
W_SCALE = number(0, MAX_W, without=(0,))


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The options of a UNet, checked against each other; each family adds its own.

    Attributes:
      spec: spec of the images and conditions; label num_classes is the null label, a zero vector.
      channels: base width, which the multipliers multiply; even.
      multipliers: width of each level over `channels`; a level has half the sides of the previous.
      blocks: residual blocks of a level on the way down; there is one more on the way up.
      attention: heights of the levels with attention; the middle always has attention.
      dropout: probability in [0, 1) inside every residual block; it is active if a key is passed.
      dtype: type of the computation, "float32" or "bfloat16"; parameters, statistics, softmax,
        embeddings and the output are float32.
      remat: activations that blocks store for the backward pass: "none", "dots", "full", see
        layers.remat.
      attention_kernel: kernel of the attention, "auto", "xla" or "cudnn", see layers.attention.

    Raises:
      ValueError: when the options do not fit each other.
    """

    spec: Spec
    channels: int = option(whole(4, 2, MAX_WIDTH), 128)
    multipliers: tuple[int | float, ...] = option(MULTIPLIERS, (2, 2, 2))
    blocks: int = option(whole(1, high=MAX_BLOCKS), 4)
    attention: tuple[int, ...] = (16,)
    dropout: float = option(DROPOUT, 0.0)
    dtype: str = option(choice(DTYPES), "float32")
    remat: str = option(choice(REMAT), "none")
    attention_kernel: str = option(choice(ATTENTION_KERNELS), "auto")

    epsilon: ClassVar[float]  # Epsilon of the group normalisations.
    gain: ClassVar[float]  # Factor on the sum of a block's input and output.
    modulated: ClassVar[bool]  # Whether the embedding also scales features, or only shifts them.
    projected: ClassVar[bool]  # Whether a resampled skip connection has a dense layer.
    attends_last: ClassVar[bool]  # Whether attention on the way up follows only the last block.
    filter: ClassVar[Taps] = (1, 1)  # Resampling filter; this one is means and copies.
    pyramid: ClassVar[bool] = False  # Whether every level adds the image again on the way down.

    def __post_init__(self) -> None:
        check_options(self)
        if min(self.widths) < 1:
            raise ValueError(
                f"multipliers are {self.multipliers}, and channels {self.channels}; expected at "
                "least one channel at each level"
            )
        height, width = self.spec.shape[:2]
        factor = 2 ** (len(self.multipliers) - 1)
        if height % factor or width % factor:
            raise ValueError(
                f"the image is {height}x{width}; {len(self.multipliers)} levels halve its sides "
                f"{len(self.multipliers) - 1} times, so expected multiples of {factor}"
            )
        if not set(self.attention) <= set(self.heights):
            raise ValueError(
                f"attention is {self.attention}; expected heights that levels of this network "
                f"have: {', '.join(map(str, self.heights))}"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of every level."""
        return tuple(int(self.channels * multiplier) for multiplier in self.multipliers)

    @property
    def heights(self) -> tuple[int, ...]:
        """Height of the image at every level."""
        return tuple(self.spec.shape[0] >> level for level in range(len(self.multipliers)))

    @property
    def first(self) -> int:
        """Channels after the first convolution."""
        return self.channels

    def groups_of(self, width: int) -> int:
        """Returns the groups of a normalisation: at most 32, of at least 4 channels each."""
        return min(32, max(width // 4, 1))

    def heads_of(self, width: int) -> int:
        """Returns the number of attention heads for a layer of that width."""
        return 1


def noise_level(arch: Architecture, t: Time) -> Time:
    """Returns c_noise = log(sigma / alpha) / 4 = -logsnr / 8, the input of EDM's networks.

    Karras et al. (2022), Table 1, for a schedule with any alpha. logsnr is clipped to [-20, 20],
    because it is infinite at the ends of some schedules; EDM samples between 12.4 and -8.8.
    """
    return -jnp.clip(arch.spec.schedule.logsnr(t), -20.0, 20.0) / 8


def downsample(h: jax.Array, taps: Taps, pad: int | None = None) -> jax.Array:
    """Filters h and keeps every second pixel: (b, h, w, c) -> (b, h/2, w/2, c).

    `pad` is the number of zeros around h; None centres the filter.
    """
    pad = (len(taps) - 1) // 2 if pad is None else pad
    weights = [tap / sum(taps) for tap in taps]
    for axis in (1, 2):
        h = _filter(h, weights, axis, (pad, pad, 0), stride=2)
    return h


def upsample(h: jax.Array, taps: Taps) -> jax.Array:
    """Puts zeros between the pixels of h and filters: (b, h, w, c) -> (b, 2h, 2w, c)."""
    pad = (len(taps) - 1) // 2
    weights = [2 * tap / sum(taps) for tap in reversed(taps)]
    for axis in (1, 2):
        h = _filter(h, weights, axis, (len(taps) - 1 - pad, pad + 1, 1), stride=1)
    return h


def _filter(
    h: jax.Array, weights: list[float], axis: int, padding: tuple[int, int, int], stride: int
) -> jax.Array:
    """Returns sum_k weights[k] h[stride i + k] after padding, as shifted sums.

    Convolutions were slower. `padding` is the number of zeros before, after and between pixels.
    """
    config = [padding if i == axis else (0, 0, 0) for i in range(h.ndim)]
    h = jax.lax.pad(h, jnp.zeros((), h.dtype), config)
    span = (h.shape[axis] - len(weights)) // stride * stride + 1
    shifted: list[Any] = [
        weight * jax.lax.slice_in_dim(h, k, k + span, stride, axis)
        for k, weight in enumerate(weights)
    ]
    return sum(shifted)


def _norm(arch: Architecture, h: jax.Array, name: str) -> jax.Array:
    """Applies a group normalisation in the architecture's dtype."""
    width = h.shape[-1]
    groups = arch.groups_of(width)
    if width % groups:
        raise ValueError(
            f"a layer has {width} channels, which {groups} groups do not divide; choose channels "
            f"({arch.channels}) and multipliers {arch.multipliers} so that they do"
        )
    layer = GroupNorm(
        groups,
        epsilon=arch.epsilon,
        dtype=jnp.dtype(arch.dtype),
        use_fast_variance=False,
        name=name,
    )
    return layer(h)


def _unchanged(h: jax.Array, taps: Taps) -> jax.Array:
    """Returns h."""
    return h


class Attention(nn.Module):
    """Self-attention over the pixels of h, plus h."""

    arch: Architecture

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        arch, dtype, width = self.arch, jnp.dtype(self.arch.dtype), h.shape[-1]
        heads = arch.heads_of(width)
        if heads < 1 or width % heads:
            raise ValueError(f"{heads} heads do not divide {width} channels: set others")
        y = _norm(arch, h, "norm").reshape(h.shape[0], -1, width)
        y = nn.DenseGeneral((3, heads, width // heads), dtype=dtype, name="qkv")(y)
        q, k, v = jnp.moveaxis(y, -3, 0)
        y = attention(q, k, v, arch.attention_kernel)
        proj = nn.DenseGeneral(width, (-2, -1), kernel_init=zeros, dtype=dtype, name="proj")
        return arch.gain * (h + proj(y).reshape(h.shape))


class Block(nn.Module):
    """A residual block of two convolutions, modulated by the embedding; optional attention."""

    arch: Architecture
    width: int
    resample: Callable[[jax.Array, Taps], jax.Array] = _unchanged
    attention: bool = False

    @nn.compact
    def __call__(self, h: jax.Array, emb: jax.Array) -> jax.Array:
        arch, dtype, width = self.arch, jnp.dtype(self.arch.dtype), self.width
        y = self.resample(nn.swish(_norm(arch, h, "norm_0")), arch.filter)
        y = nn.Conv(width, (3, 3), dtype=dtype, name="conv_0")(y)

        mod = nn.Dense((1 + arch.modulated) * width, dtype=dtype, name="emb")(emb)[:, None, None]
        if arch.modulated:
            scale, shift = jnp.split(mod, 2, axis=-1)
            y = modulate(_norm(arch, y, "norm_1"), shift, scale)
        else:
            y = _norm(arch, y + mod, "norm_1")
        y = nn.Dropout(arch.dropout, deterministic=not self.has_rng("dropout"))(nn.swish(y))
        y = nn.Conv(width, (3, 3), kernel_init=zeros, dtype=dtype, name="conv_1")(y)

        resampled = self.resample is not _unchanged
        h = self.resample(h, arch.filter)
        if h.shape[-1] != width or (resampled and arch.projected):
            h = nn.Dense(width, dtype=dtype, name="skip")(h)
        h = arch.gain * (h + y)
        return Attention(arch, name="attention")(h) if self.attention else h


class ResidualUNet(nn.Module):
    """The U: levels on the way down, the middle, and levels on the way up with skip connections."""

    arch: Architecture

    @nn.compact
    def __call__(self, z: Image, emb: jax.Array) -> Output:
        arch, last = self.arch, len(self.arch.widths) - 1
        check_halvings(z.shape[1:3], last)
        skips = self._down(z, emb)
        h = self._block(skips[-1], emb, arch.widths[last], "mid_0", attention=True)
        h = self._block(h, emb, arch.widths[last], "mid_1")
        self.sow("features", "middle", h.reshape(len(h), -1, h.shape[-1]))
        for level, width in reversed(list(enumerate(arch.widths))):
            if level < last:
                h = self._block(h, emb, h.shape[-1], f"up_{level}", resample=upsample)
            for i in range(arch.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                attends = arch.heights[level] in arch.attention
                attends &= i == arch.blocks or not arch.attends_last
                h = self._block(h, emb, width, f"up_{level}_block_{i}", attention=attends)
        h = nn.swish(_norm(arch, h, "norm"))
        # In float32, which is cheap for few channels and avoids rounding the output.
        output = nn.Conv(arch.spec.channels_out, (3, 3), kernel_init=zeros, name="output")
        return output(h.astype(jnp.float32))

    def _down(self, z: Image, emb: jax.Array) -> list[jax.Array]:
        """Returns the skip connections; the last one is the input of the middle."""
        arch, dtype = self.arch, jnp.dtype(self.arch.dtype)
        skips = [nn.Conv(arch.first, (3, 3), dtype=dtype, name="input")(z)]
        pyramid = z
        for level, width in enumerate(arch.widths):
            if level:
                h = skips[-1]
                h = self._block(h, emb, h.shape[-1], f"down_{level}", resample=downsample)
                if arch.pyramid:
                    h = pyramid = (h + self._smaller(pyramid, h, level)) * 0.5**0.5
                skips.append(h)
            for i in range(arch.blocks):
                attends = arch.heights[level] in arch.attention
                name = f"down_{level}_block_{i}"
                skips.append(self._block(skips[-1], emb, width, name, attention=attends))
        return skips

    def _smaller(self, pyramid: jax.Array, h: jax.Array, level: int) -> jax.Array:
        """Returns the pyramid at the resolution and with the channels of h.

        The padding of the convolution includes the filter's padding, so at the border the filter
        sees outputs of the convolution instead of zeros.
        """
        pad, dtype = 1 + (len(self.arch.filter) - 1) // 2, jnp.dtype(self.arch.dtype)
        conv = nn.Conv(h.shape[-1], (3, 3), padding=pad, dtype=dtype, name=f"pyramid_{level}")
        return downsample(conv(pyramid), self.arch.filter, pad=0)

    def _block(self, h: jax.Array, emb: jax.Array, width: int, name: str, **kind: Any) -> jax.Array:
        """Applies one residual block, which arch.remat may recompute in the backward pass."""
        block = remat(Block, self.arch.remat)
        return block(self.arch, width, name=name, **kind)(h, emb)
