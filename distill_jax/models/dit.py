"""A diffusion transformer with adaLN-zero conditioning on labels or a text, for larger images.

Peebles & Xie (2023), Scalable Diffusion Models with Transformers, arXiv:2212.09748. Its cost is
matrix products, which are fast on every accelerator, and its parameters can be sharded by attention
head and hidden unit. On a CPU at 8x8 pixels the MLP is several times faster.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.denoiser import Network
from distill_jax.diffusion.spec import Spec
from distill_jax.models.layers import (
    ATTENTION_KERNELS,
    DTYPES,
    REMAT,
    TIME_SCALE,
    Conditioning,
    as_network,
    attention,
    middle_of,
    modulate,
    position_embedding,
    stacked,
    zeros,
)
from distill_jax.models.prompt import Prompt
from distill_jax.runtime.options import (
    MAX_WIDTH,
    check_options,
    choice,
    option,
    takes_fields,
    whole,
)
from distill_jax.typing import Cond, Image, Output, Time


def centres(count: int, full: int) -> np.ndarray:
    """Returns the centres of `count` patches that cover the same area as `full` patches.

        (i + 1/2) full / count - 1/2

    At the full size the centres are 0, 1, ..., so a place in the image has the same position at
    every size.
    """
    return (np.arange(count) + 0.5) * (full / count) - 0.5


class Block(nn.Module):
    """A block of attention and an MLP, each modulated and gated by the conditioning."""

    heads: int
    expand: int
    dtype: jnp.dtype
    kernel: str

    @nn.compact
    def __call__(self, h: jax.Array, emb: jax.Array) -> tuple[jax.Array, None]:
        width = h.shape[-1]
        mod = nn.Dense(6 * width, kernel_init=zeros, dtype=self.dtype, name="modulation")(emb)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(mod[:, None], 6, axis=-1)

        y = modulate(self._norm(h), shift_1, scale_1)
        qkv = nn.DenseGeneral((3, self.heads, width // self.heads), dtype=self.dtype, name="qkv")(y)
        q, k, v = jnp.moveaxis(qkv, -3, 0)
        y = attention(q, k, v, self.kernel)
        h += gate_1 * nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name="proj")(y)

        y = modulate(self._norm(h), shift_2, scale_2)
        y = nn.gelu(nn.Dense(self.expand * width, dtype=self.dtype, name="up")(y))
        return h + gate_2 * nn.Dense(width, dtype=self.dtype, name="down")(y), None

    def _norm(self, h: jax.Array) -> jax.Array:
        """Applies a layer normalisation without scale and shift, which the conditioning has."""
        return nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)(h)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The options of the transformer, checked against each other; the defaults are DiT-S/2.

    Attributes:
      spec: spec of the images and conditions; label num_classes is the null label.
      patch: side of the square patches, which divides the sides of the image.
      width: width of the tokens, divisible by heads and by 4.
      blocks: number of transformer blocks.
      heads: number of attention heads.
      expand: hidden width of a block's MLP over the width of the tokens.
      dtype: type of the computation, "float32" or "bfloat16"; parameters are float32.
      remat: activations that blocks store for the backward pass: "none", "dots", "full", see
        layers.remat.
      attention_kernel: kernel of the attention, "auto", "xla" or "cudnn", see layers.attention.
      time_scale: largest angle in the embedding of the time; small for a network that is smooth in
        the time, as `scm` needs.

    Raises:
      ValueError: when a size does not divide another, or for an unknown name.
    """

    spec: Spec
    patch: int = option(whole(1, high=MAX_WIDTH), 2)
    width: int = option(whole(4, 4, MAX_WIDTH), 384)
    blocks: int = option(whole(1, high=1024), 12)
    heads: int = option(whole(1, high=1024), 6)
    expand: int = option(whole(1, high=64), 4)
    dtype: str = option(choice(DTYPES), "float32")
    remat: str = option(choice(REMAT), "none")
    attention_kernel: str = option(choice(ATTENTION_KERNELS), "auto")
    time_scale: float = option(TIME_SCALE, 1000.0)

    def __post_init__(self) -> None:
        check_options(self)
        check_patch(self.patch, *self.spec.shape[:2])
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be divisible by heads = {self.heads}")


class DiT(nn.Module):
    """The network: transformer blocks on the patches of the image."""

    arch: Architecture

    @nn.compact
    def __call__(self, z: Image, t: Time, cond: Cond) -> Output:
        arch, dtype = self.arch, jnp.dtype(self.arch.dtype)
        batch, height, width, channels = z.shape
        check_patch(arch.patch, height, width)
        rows, columns = height // arch.patch, width // arch.patch
        tiles = (batch, rows, arch.patch, columns, arch.patch)
        classes, channels_out = arch.spec.classes("label"), arch.spec.channels_out
        full = (side // arch.patch for side in arch.spec.shape[:2])
        y, x = (centres(*counts) for counts in zip((rows, columns), full, strict=True))
        places = jnp.asarray(position_embedding(y, x, arch.width))
        conditioning = Conditioning(
            arch.width, classes, time_scale=arch.time_scale, name="conditioning"
        )
        emb = conditioning(t, cond)
        h = places.astype(dtype)
        if "text" in cond:
            given = cond["text"], cond["text_mask"]
            tokens, whole = Prompt(arch.width, arch.heads, name="prompt")(places, *given)
            h, emb = h + tokens.astype(dtype), emb + whole
        emb = nn.swish(emb)

        patches = jnp.swapaxes(z.reshape(*tiles, channels), 2, 3).reshape(batch, rows * columns, -1)
        h += nn.Dense(arch.width, dtype=dtype, name="input")(patches)
        # For the features of the middle, later blocks do not run, because the output is unused.
        asked = self.is_mutable_collection("features") and not self.is_initializing()
        first = middle_of(arch.blocks) + 1 if asked else arch.blocks
        blocks = stacked(Block, arch.remat, arch.blocks, first)
        name = f"block[0:{arch.blocks}]"
        h, _ = blocks(arch.heads, arch.expand, dtype, arch.attention_kernel, name=name)(h, emb)
        self.sow("features", "middle", h)

        mod = nn.Dense(2 * arch.width, kernel_init=zeros, dtype=dtype, name="modulation")(emb)
        norm = nn.LayerNorm(use_bias=False, use_scale=False, dtype=dtype)(h)
        h = modulate(norm, *jnp.split(mod[:, None], 2, axis=-1))
        pixels = arch.patch**2 * channels_out
        # In float32, as in the UNets, because rounding here is an error of every target.
        h = nn.Dense(pixels, kernel_init=zeros, name="output")(h.astype(jnp.float32))
        h = h.reshape(batch, rows, columns, arch.patch, arch.patch, channels_out)
        return jnp.swapaxes(h, 2, 3).reshape(batch, height, width, channels_out)


def check_patch(patch: int, height: int, width: int) -> None:
    """Raises ValueError unless patches tile the image."""
    if height % patch or width % patch:
        raise ValueError(
            f"patch {patch} does not divide the image of {height}x{width}; expected sides that are "
            "multiples of it"
        )


@takes_fields(Architecture)
def dit(spec: Spec, **options: Any) -> Network:
    """Returns the transformer for the images of a spec.

    With the same parameters it also takes images of other sizes that the patch divides: they have
    fewer tokens, whose positions are those of the same places in the full image.

    Args:
      spec: spec of the images and conditions.
      **options: the other attributes of Architecture.

    Raises:
      ValueError: when the options do not fit the spec or each other.
    """
    return as_network(DiT(Architecture(spec, **options)), features=True)
