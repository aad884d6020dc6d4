"""The UNet of Stable Diffusion and SDXL, with the names of diffusers' UNet2DConditionModel.

Rombach et al. (2022, arXiv:2112.10752), Podell et al. (2023, arXiv:2307.01952). The defaults are
Stable Diffusion 1.5. It takes a text, a guidance strength w where the layout `time_cond_proj_dim`
of diffusers has it, and the mask and the masked latent of an inpainting model. The path of a
parameter, joined by dots, is its name in a checkpoint of diffusers.
"""

import dataclasses
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
    cosines_and_sines,
    fresh,
    remat,
    sinusoid,
    with_numbers,
    zeros,
)
from distill_jax.models.residual_unet import DROPOUT
from distill_jax.models.sd_blocks import Resnet, Transformer, conv3, group_norm
from distill_jax.models.unet import doubled
from distill_jax.runtime.options import (
    MAX_BLOCKS,
    MAX_WIDTH,
    check_options,
    choice,
    every,
    option,
    takes_fields,
    whole,
)
from distill_jax.typing import Cond, Image, Output, Time

TIMESTEPS = 1000  # Index k of the noise levels in training is the time t = (k + 1) / 1000.
PIXELS = 8  # The side of an image over that of its latent, for every autoencoder of SDXL.
NORM = 1e-5  # Epsilon of the norms outside the transformers.


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The options of the UNet, checked against each other; the defaults are Stable Diffusion 1.5.

    Attributes:
      spec: spec of the latents and conditions. The network reads "text" (n, d), "text_mask" (n,),
        "label", and "inpaint" (h, w, k): channels that are put behind those of the latent, in
        inpainting models the mask (1 where the image is new) and the masked latent.
      widths: channels of each level, divisible by groups; a level has half the side of the
        previous.
      blocks: residual blocks of a level on the way down; there is one more on the way up.
      transformers: levels, from 0, where a transformer follows each block; the middle has one too.
      heads: attention heads of each level.
      depths: blocks of each level's transformers; () for one. The middle has as many as the last
        level.
      size_channels: channels of the sinusoid of each of the six sizes that SDXL takes, even; SDXL
        has 256. The network computes the sizes from the sides of its input: those of a whole image
        of 8 pixels for each of the latent's. It then also reads "pooled" (d,), a vector of the
        whole text. 0 for a network without both.
      linear: whether the ends of a transformer are dense layers, as in Stable Diffusion 2, rather
        than 1x1 convolutions.
      groups: groups of the group normalisations.
      w_channels: channels of the sinusoid of w, even.
      hide_padding: whether places attend only to tokens in "text_mask". Stable Diffusion was
        trained with attention to all tokens.
      dropout: probability in [0, 1) inside every residual block; it is active if a key is passed.
      dtype: type of the computation, "float32" or "bfloat16"; parameters, statistics of the
        normalisations, softmax, embeddings and the output are float32.
      remat: activations that blocks store for the backward pass: "none", "dots", "full", see
        layers.remat.
      attention_kernel: kernel of the attention, "auto", "xla" or "cudnn", see layers.attention.

    Raises:
      ValueError: when the options do not fit each other.
    """

    spec: Spec
    widths: tuple[int, ...] = option(every(whole(1, high=MAX_WIDTH), 16, 1), (320, 640, 1280, 1280))
    blocks: int = option(whole(1, high=MAX_BLOCKS), 2)
    transformers: tuple[int, ...] = option(every(whole(0, high=15), 16), (0, 1, 2))
    heads: tuple[int, ...] = option(every(whole(1, high=MAX_WIDTH), 16, 1), (8, 8, 8, 8))
    depths: tuple[int, ...] = option(every(whole(1, high=MAX_BLOCKS), 16), ())
    size_channels: int = option(whole(0, 2, MAX_WIDTH), 0)
    linear: bool = False
    groups: int = option(whole(1, high=MAX_WIDTH), 32)
    w_channels: int = option(whole(4, 2, MAX_WIDTH), 256)
    hide_padding: bool = False
    dropout: float = option(DROPOUT, 0.0)
    dtype: str = option(choice(DTYPES), "float32")
    remat: str = option(choice(REMAT), "none")
    attention_kernel: str = option(choice(ATTENTION_KERNELS), "auto")

    def __post_init__(self) -> None:
        check_options(self)
        if len(self.heads) != len(self.widths):
            raise ValueError(
                f"heads is {self.heads}; expected a number for each of the {len(self.widths)} "
                f"levels of widths {self.widths}"
            )
        if len(self.depths) not in (0, len(self.widths)):
            raise ValueError(
                f"depths is {self.depths}; expected a number for each of the {len(self.widths)} "
                f"levels of widths {self.widths}, or none"
            )
        if self.size_channels and "pooled" not in dict(self.spec.data.cond):
            raise ValueError(
                f"size_channels is {self.size_channels}, and the conditions are "
                f"{sorted(dict(self.spec.data.cond))}; expected 'pooled' too, a vector of the text"
            )
        if not all(level < len(self.widths) for level in self.transformers):
            raise ValueError(
                f"transformers is {self.transformers}; expected levels from 0 to "
                f"{len(self.widths) - 1}"
            )
        for level, (width, heads) in enumerate(zip(self.widths, self.heads, strict=True)):
            if width % self.groups or (self.attends(level) and width % heads):
                raise ValueError(
                    f"widths is {self.widths}; expected multiples of groups = {self.groups} and of "
                    f"the heads of the level, {self.heads}"
                )
        if self.widths[0] % 2:
            raise ValueError(f"widths is {self.widths}; expected an even first one")
        _check_halvings(self.spec.shape[:2], len(self.widths) - 1)

    def attends(self, level: int) -> bool:
        """Returns whether a level, or the middle after the last level, has a transformer."""
        return level in self.transformers or level == len(self.widths) - 1


def _check_halvings(sides: tuple[int, ...], halvings: int) -> None:
    """Raises ValueError unless both sides of a latent can be halved that often."""
    if any(side % 2**halvings for side in sides):
        raise ValueError(
            f"the latent is {sides[0]}x{sides[1]}; this unet halves its sides {halvings} times, so "
            f"expected multiples of {2**halvings}"
        )


class SdUNet(nn.Module):
    """The network: levels on the way down, the middle, and levels up with skip connections."""

    arch: Architecture

    @nn.compact
    def __call__(self, z: Image, t: Time, cond: Cond) -> Output:
        arch, dtype = self.arch, jnp.dtype(self.arch.dtype)
        last = len(arch.widths) - 1
        _check_halvings(z.shape[1:3], last)
        emb = self._embed(t, cond, z.shape[1:3])
        if "inpaint" in cond:
            z = jnp.concatenate([z, cond["inpaint"].astype(z.dtype)], axis=-1)

        h = conv3(arch.widths[0], dtype, "conv_in")(z)
        skips = [h]
        for level, width in enumerate(arch.widths):
            for block in range(arch.blocks):
                h = self._block(h, emb, cond, (f"down_blocks.{level}", level, block))
                skips.append(h)
            if level < last:
                h = conv3(width, dtype, f"down_blocks.{level}.downsamplers.0.conv", 2)(h)
                skips.append(h)

        h = self._resnet(h, emb, last, "mid_block.resnets.0")
        h = self._attend(h, cond, last, "mid_block.attentions.0")
        h = self._resnet(h, emb, last, "mid_block.resnets.1")
        self.sow("features", "middle", h.reshape(len(h), -1, h.shape[-1]))

        for number, level in enumerate(reversed(range(last + 1))):
            for block in range(arch.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = self._block(h, emb, cond, (f"up_blocks.{number}", level, block))
            if level > 0:
                name = f"up_blocks.{number}.upsamplers.0.conv"
                h = conv3(arch.widths[level], dtype, name)(doubled(h))

        h = nn.swish(group_norm(arch.groups, NORM, dtype, "conv_norm_out")(h))
        # In float32, which is cheap for few channels and avoids rounding the output.
        out = conv3(arch.spec.channels_out, jnp.dtype("float32"), "conv_out")
        return out(h.astype(jnp.float32))

    def _embed(self, t: Time, cond: Cond, sides: tuple[int, ...]) -> jax.Array:
        """Returns one float32 vector per example: noise level, conditions, sides of the latent."""
        arch = self.arch
        emb, width = cosines_and_sines(TIMESTEPS * t - 1, arch.widths[0]), 4 * arch.widths[0]
        if "w" in cond:
            name = "time_embedding.cond_proj"
            project = nn.Dense(arch.widths[0], use_bias=False, kernel_init=zeros, name=name)
            emb += project(sinusoid(cond["w"], arch.w_channels))
        emb = nn.swish(nn.Dense(width, name="time_embedding.linear_1")(emb))
        emb = nn.Dense(width, name="time_embedding.linear_2")(emb)
        if arch.size_channels:
            emb += self._sizes(cond["pooled"], sides)
        if "label" in cond:
            classes = arch.spec.classes("label")
            emb += nn.Embed(classes + 1, width, name="class_embedding")(cond["label"])
        return with_numbers(emb, {k: x for k, x in cond.items() if k != "w"}, 1.0)

    def _sizes(self, pooled: jax.Array, sides: tuple[int, ...]) -> jax.Array:
        """Returns the embedding (b, d) of a pooled text, and of the sizes of an image.

        They are (height, width) of the original image, (top, left) of its crop, and (height, width)
        of the crop, Podell et al. (2023), section 2.2, as StableDiffusionXLPipeline gives them for
        latents of these sides: (8 h, 8 w, 0, 0, 8 h, 8 w).
        """
        original = tuple(PIXELS * side for side in sides)
        numbers = jnp.asarray((*original, 0, 0, *original), jnp.float32)
        sizes = cosines_and_sines(numbers, self.arch.size_channels).reshape(-1)
        x = jnp.concatenate([pooled, jnp.tile(sizes, (len(pooled), 1))], axis=-1)
        width = 4 * self.arch.widths[0]
        h = nn.swish(nn.Dense(width, name="add_embedding.linear_1")(x))
        return nn.Dense(width, name="add_embedding.linear_2")(h)

    def _block(
        self, h: jax.Array, emb: jax.Array, cond: Cond, place: tuple[str, int, int]
    ) -> jax.Array:
        """Applies a residual block, and a transformer if the level has them."""
        part, level, block = place
        h = self._resnet(h, emb, level, f"{part}.resnets.{block}")
        if level in self.arch.transformers:
            h = self._attend(h, cond, level, f"{part}.attentions.{block}")
        return h

    def _resnet(self, h: jax.Array, emb: jax.Array, level: int, name: str) -> jax.Array:
        """Applies one residual block."""
        arch = self.arch
        block = remat(Resnet, arch.remat)
        options = (arch.widths[level], arch.groups, NORM, jnp.dtype(arch.dtype), arch.dropout)
        return block(*options, name=name)(h, emb)

    def _attend(self, h: jax.Array, cond: Cond, level: int, name: str) -> jax.Array:
        """Applies one transformer."""
        arch = self.arch
        depth = arch.depths[level] if arch.depths else 1
        # Stacked blocks are rematerialised one by one.
        block = remat(Transformer, arch.remat) if depth == 1 else Transformer
        options = (arch.heads[level], jnp.dtype(arch.dtype), arch.attention_kernel)
        mask = cond.get("text_mask") if arch.hide_padding else None
        made = block(*options, arch.groups, arch.linear, depth, arch.remat, name=name)
        return made(h, cond.get("text"), mask)


@takes_fields(Architecture)
def sd_unet(spec: Spec, **options: Any) -> Network:
    """Returns the UNet for the latents of a spec; without a text, places attend to places only.

    With the same parameters it also takes latents of other sizes, if its levels can halve their
    sides. New parameters are drawn leaf by leaf from their shapes.

    Args:
      spec: spec of the latents and conditions.
      **options: the other attributes of Architecture.

    Raises:
      ValueError: when the options do not fit the spec or each other.
    """
    arch = Architecture(spec, **options)
    network = as_network(SdUNet(arch), features=True, policy=arch.remat)
    zero = ("conv_out/kernel", "cond_proj/kernel", "Dense_1/kernel")
    return network._replace(init=fresh(network.init, zero))
