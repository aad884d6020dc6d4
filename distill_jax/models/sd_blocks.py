"""The blocks of Stable Diffusion's networks; modules are named as in diffusers' checkpoints.

Rombach et al. (2022, arXiv:2112.10752). The path of a parameter, joined by dots, is the name of its
array in a checkpoint, see models.pretrained.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.models.layers import attention, stacked
from distill_jax.models.norms import GroupNorm

Padding = tuple[tuple[int, int], tuple[int, int]]
AROUND: Padding = ((1, 1), (1, 1))  # Of a 3x3 kernel: one pixel on every side, as in PyTorch.


def conv3(width: int, dtype: jnp.dtype, name: str, stride: int = 1) -> nn.Conv:
    """Returns a 3x3 convolution with one pixel of zeros on every side."""
    return nn.Conv(width, (3, 3), (stride, stride), AROUND, dtype=dtype, name=name)


def group_norm(groups: int, epsilon: float, dtype: jnp.dtype, name: str) -> GroupNorm:
    """Returns a group normalisation whose variance is that of PyTorch."""
    return GroupNorm(groups, epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


class Resnet(nn.Module):
    """A residual block: two convolutions, each after a norm and swish, and the embedding between.

    Attributes:
      width: number of channels that it returns.
      groups: groups of the norms.
      epsilon: epsilon of the norms: 1e-5 in denoisers, 1e-6 in autoencoders.
      dropout: probability before the second convolution.
      dtype: type of the computation.
    """

    width: int
    groups: int
    epsilon: float
    dtype: jnp.dtype
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, emb: jax.Array | None = None) -> jax.Array:
        """Returns (b, h, w, width) for x (b, h, w, c) and emb (b, d), None in autoencoders."""
        h = nn.swish(group_norm(self.groups, self.epsilon, self.dtype, "norm1")(x))
        h = conv3(self.width, self.dtype, "conv1")(h)
        if emb is not None:
            project = nn.Dense(self.width, dtype=self.dtype, name="time_emb_proj")
            h += project(nn.swish(emb))[:, None, None]
        h = nn.swish(group_norm(self.groups, self.epsilon, self.dtype, "norm2")(h))
        h = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(h)
        h = conv3(self.width, self.dtype, "conv2")(h)
        if x.shape[-1] != self.width:
            x = nn.Conv(self.width, (1, 1), dtype=self.dtype, name="conv_shortcut")(x)
        return x + h


class Attending(nn.Module):
    """The layers of a transformer block, for the modules below.

    Attributes:
      heads: number of attention heads, which divides the channels.
      dtype: type of the computation.
      kernel: kernel of the attention, see layers.attention.
    """

    heads: int
    dtype: jnp.dtype
    kernel: str

    def _block(
        self, h: jax.Array, text: jax.Array | None, mask: jax.Array | None, prefix: str
    ) -> jax.Array:
        """Returns places like h (b, m, c) after attention and an MLP; `prefix` begins all names."""
        width = h.shape[-1]
        y = self._norm(f"{prefix}norm1")(h)
        h += self._attend(y, y, None, f"{prefix}attn1")
        y = self._norm(f"{prefix}norm2")(h)
        tokens = y if text is None else text.astype(self.dtype)
        h += self._attend(y, tokens, None if text is None else mask, f"{prefix}attn2")
        y = self._norm(f"{prefix}norm3")(h)
        y, gate = jnp.split(self._dense(8 * width, f"{prefix}ff.net.0.proj")(y), 2, axis=-1)
        return h + self._dense(width, f"{prefix}ff.net.2")(y * nn.gelu(gate, approximate=False))

    def _attend(
        self, h: jax.Array, tokens: jax.Array, mask: jax.Array | None, name: str
    ) -> jax.Array:
        """Returns the attention of places h (b, m, c) to tokens (b, n, d)."""
        width = h.shape[-1]
        split = (self.heads, width // self.heads)

        def project(x: jax.Array, part: str) -> jax.Array:
            y = self._dense(width, f"{name}.to_{part}", use_bias=False)(x)
            return y.reshape(*x.shape[:2], *split)

        q, k, v = project(h, "q"), project(tokens, "k"), project(tokens, "v")
        found = attention(q, k, v, self.kernel, mask)
        return self._dense(width, f"{name}.to_out.0")(found.reshape(h.shape))

    def _dense(self, width: int, name: str, use_bias: bool = True) -> nn.Dense:
        return nn.Dense(width, use_bias=use_bias, dtype=self.dtype, name=name)

    def _norm(self, name: str) -> nn.LayerNorm:
        return nn.LayerNorm(1e-5, dtype=self.dtype, use_fast_variance=False, name=name)


class Block(Attending):
    """One of several equal blocks, in the form of layers.stacked."""

    @nn.compact
    def __call__(
        self, h: jax.Array, cond: tuple[jax.Array | None, jax.Array | None]
    ) -> tuple[jax.Array, None]:
        """Returns places like h (b, m, c), for a text and its mask as in Transformer."""
        return self._block(h, *cond, ""), None


class Transformer(Attending):
    """Attention of all places to each other and to a text, and an MLP, with residuals.

    Attributes:
      groups: groups of the norm at the input.
      linear: whether the first and last layer are dense rather than 1x1 convolutions; they
        compute the same, and their kernels differ in shape.
      depth: number of blocks. Several are stacked, so a program has one of them; a single one has
        its layers here, without an axis of blocks.
      policy: activations that stacked blocks store, see layers.remat.
    """

    groups: int
    linear: bool
    depth: int = 1
    policy: str = "none"

    @nn.compact
    def __call__(
        self, x: jax.Array, text: jax.Array | None, mask: jax.Array | None = None
    ) -> jax.Array:
        """Returns an array like x (b, h, w, c).

        Args:
          x: activations of an image.
          text: tokens (b, n, d); None to attend to the places of the image instead.
          mask: (b, n), True for tokens that places attend to; None for all.
        """
        width = x.shape[-1]
        h = group_norm(self.groups, 1e-6, self.dtype, "norm")(x)
        h = self._outer(width, "proj_in")(h).reshape(len(x), -1, width)
        if self.depth > 1:
            blocks = stacked(Block, self.policy, self.depth, self.depth)
            name = f"transformer_blocks[0:{self.depth}]"
            h, _ = blocks(self.heads, self.dtype, self.kernel, name=name)(h, (text, mask))
        else:
            h = self._block(h, text, mask, "transformer_blocks.0.")
        return x + self._outer(width, "proj_out")(h.reshape(x.shape))

    def _outer(self, width: int, name: str) -> nn.Dense | nn.Conv:
        if self.linear:
            return self._dense(width, name)
        return nn.Conv(width, (1, 1), dtype=self.dtype, name=name)
