"""A diffusion transformer with adaLN-zero conditioning, for larger images.

Peebles & Xie (2023), Scalable Diffusion Models with Transformers, arXiv:2212.09748. Its cost is
matrix products, which every accelerator is built for, and its parameters split over devices by
attention head and hidden unit. On a CPU at 8x8 the MLP is several times faster.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.denoiser import Network, Sizes
from distill_jax.models.layers import Conditioning, as_network, middle_of, modulate, zeros
from distill_jax.typing import Cond, Image, Output, Time


def centres(count: int, full: int) -> np.ndarray:
    """Where the centres of `count` patches lie that cover what `full` patches at 0, 1, ... do.

        (i + 1/2) full / count - 1/2

    So a place in the image has one position at every size; at the full size they are 0, 1, ...
    """
    return (np.arange(count) + 0.5) * (full / count) - 0.5


def position_embedding(rows: np.ndarray, columns: np.ndarray, width: int) -> np.ndarray:
    """Fixed 2-D sine-cosine embedding of all places (row, column), width divisible by 4.

    Returns:
      (len(rows) * len(columns), width).
    """
    frequencies = 10000.0 ** (-np.arange(width // 4) / (width // 4))
    y, x = np.meshgrid(rows, columns, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (y, x)]
    parts = [function(angle) for angle in angles for function in (np.sin, np.cos)]
    return np.concatenate(parts, axis=-1).astype(np.float32)


class Block(nn.Module):
    """Attention and an MLP, each modulated and gated by the conditioning."""

    heads: int
    expand: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, h: jax.Array, emb: jax.Array) -> jax.Array:
        width = h.shape[-1]
        mod = nn.Dense(6 * width, kernel_init=zeros, dtype=self.dtype, name="modulation")(emb)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(mod[:, None], 6, axis=-1)

        y = modulate(self._norm(h), shift_1, scale_1)
        qkv = nn.DenseGeneral((3, self.heads, width // self.heads), dtype=self.dtype, name="qkv")(y)
        y = jax.nn.dot_product_attention(*jnp.moveaxis(qkv, -3, 0))
        h += gate_1 * nn.DenseGeneral(width, axis=(-2, -1), dtype=self.dtype, name="proj")(y)

        y = modulate(self._norm(h), shift_2, scale_2)
        y = nn.gelu(nn.Dense(self.expand * width, dtype=self.dtype, name="up")(y))
        return h + gate_2 * nn.Dense(width, dtype=self.dtype, name="down")(y)

    def _norm(self, h: jax.Array) -> jax.Array:
        return nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)(h)


class DiT(nn.Module):
    """Patches -> transformer blocks -> patches."""

    sizes: Sizes
    patch: int
    width: int
    blocks: int
    heads: int
    expand: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, z: Image, t: Time, cond: Cond) -> Output:
        batch, height, width, channels = z.shape
        _check_patch(self.patch, height, width)
        rows, columns = height // self.patch, width // self.patch
        tiles = (batch, rows, self.patch, columns, self.patch)
        classes, channels_out = self.sizes.num_classes, self.sizes.channels_out
        emb = nn.swish(Conditioning(self.width, classes, name="conditioning")(t, cond))

        patches = jnp.swapaxes(z.reshape(*tiles, channels), 2, 3).reshape(batch, rows * columns, -1)
        h = nn.Dense(self.width, dtype=self.dtype, name="input")(patches)
        full = (side // self.patch for side in self.sizes.shape[:2])
        places = (centres(*counts) for counts in zip((rows, columns), full, strict=True))
        h += position_embedding(*places, self.width).astype(self.dtype)
        for block in range(self.blocks):
            h = Block(self.heads, self.expand, self.dtype, name=f"block_{block}")(h, emb)
            if block == middle_of(self.blocks):
                self.sow("features", "middle", h)

        mod = nn.Dense(2 * self.width, kernel_init=zeros, dtype=self.dtype, name="modulation")(emb)
        norm = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)(h)
        h = modulate(norm, *jnp.split(mod[:, None], 2, axis=-1))
        pixels = self.patch**2 * channels_out
        h = nn.Dense(pixels, kernel_init=zeros, dtype=self.dtype, name="output")(h)
        h = h.reshape(batch, rows, columns, self.patch, self.patch, channels_out)
        return jnp.swapaxes(h, 2, 3).reshape(batch, height, width, channels_out)


def _check_patch(patch: int, height: int, width: int) -> None:
    """Raises ValueError unless patches tile the image."""
    if height % patch or width % patch:
        raise ValueError(
            f"patch {patch} does not divide the image of {height}x{width}; expected sides that are "
            "multiples of it"
        )


def dit(
    sizes: Sizes,
    patch: int = 2,
    width: int = 384,
    blocks: int = 12,
    heads: int = 6,
    expand: int = 4,
    dtype: str = "float32",
) -> Network:
    """The transformer for images of these sizes; the defaults are DiT-S/2.

    With the same parameters it takes images of every other size that the patch divides: fewer
    tokens, at positions that say which part of the full image they cover.

    Args:
      sizes: what it must fit; label num_classes is the null label.
      patch: side of the square patches; divides the sides of the image.
      width: of the tokens, divisible by heads and by 4.
      blocks: transformer blocks.
      heads: attention heads.
      expand: hidden width of a block's MLP over the width of the tokens.
      dtype: of the computation, "float32" or "bfloat16"; parameters are float32.

    Raises:
      ValueError: when a size does not divide another.
    """
    _check_patch(patch, *sizes.shape[:2])
    if width % heads or width % 4:
        raise ValueError(f"width {width} must be divisible by 4 and by heads = {heads}")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype is {dtype!r}; expected 'float32' or 'bfloat16'")
    compute = jnp.dtype(dtype)
    return as_network(DiT(sizes, patch, width, blocks, heads, expand, compute), features=True)
