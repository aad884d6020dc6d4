"""The DiT of diffusers' DiTPipeline, with the names of its DiTTransformer2DModel.

Peebles & Xie (2023, arXiv:2212.09748). The defaults are DiT-XL/2 for the latents of ImageNet 256.
The path of a parameter, joined by dots, is its name in a checkpoint, with two differences: blocks
are stacked, see models.pretrained, and the embedding of time and label, which a checkpoint has in
every block, is here once, see models.dit_files.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.denoiser import Network
from distill_jax.diffusion.spec import Spec
from distill_jax.models.dit import check_patch
from distill_jax.models.layers import (
    ATTENTION_KERNELS,
    DTYPES,
    REMAT,
    as_network,
    attention,
    cosines_and_sines,
    fresh,
    middle_of,
    modulate,
    position_embedding,
    stacked,
    with_numbers,
)
from distill_jax.runtime.options import (
    MAX_WIDTH,
    check_options,
    choice,
    number,
    option,
    takes_fields,
    whole,
)
from distill_jax.typing import Cond, Image, Output, Time

TIMESTEPS = 1000  # Index k of the noise levels in training is the time t = (k + 1) / 1000.
CHANNELS = 256  # Of the sinusoid of the time.
W_SCALE = 4.0  # The w whose embedding is that of t = 1; larger w are allowed.
NORM = 1e-6  # Epsilon of the norms other than a block's second.


def layer_norm(epsilon: float, dtype: jnp.dtype) -> nn.LayerNorm:
    """Returns a layer normalisation without scale and shift, which the conditioning has."""
    return nn.LayerNorm(
        epsilon, use_bias=False, use_scale=False, dtype=dtype, use_fast_variance=False
    )


class Block(nn.Module):
    """A block of attention and an MLP, each modulated and gated by the conditioning."""

    heads: int
    epsilon: float
    dtype: jnp.dtype
    kernel: str

    @nn.compact
    def __call__(self, h: jax.Array, emb: jax.Array) -> tuple[jax.Array, None]:
        width = h.shape[-1]
        mod = self._dense(6 * width, "norm1.linear")(emb)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(mod[:, None], 6, axis=-1)

        y = modulate(layer_norm(NORM, self.dtype)(h), shift_1, scale_1)
        split = (*h.shape[:2], self.heads, width // self.heads)
        q, k, v = (self._dense(width, f"attn1.to_{part}")(y).reshape(split) for part in "qkv")
        y = attention(q, k, v, self.kernel).reshape(h.shape)
        h += gate_1 * self._dense(width, "attn1.to_out.0")(y)

        y = modulate(layer_norm(self.epsilon, self.dtype)(h), shift_2, scale_2)
        y = nn.gelu(self._dense(4 * width, "ff.net.0.proj")(y))
        return h + gate_2 * self._dense(width, "ff.net.2")(y), None

    def _dense(self, width: int, name: str) -> nn.Dense:
        return nn.Dense(width, dtype=self.dtype, name=name)


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The options of the transformer, checked against each other; the defaults are DiT-XL/2.

    Attributes:
      spec: spec of the latents and conditions; label num_classes is the null label.
      patch: side of the square patches, which divides the sides of the latent.
      width: width of the tokens, divisible by heads and by 4.
      blocks: number of transformer blocks.
      heads: number of attention heads.
      epsilon: epsilon of the second norm of a block: 1e-5 in diffusers, 1e-6 in facebookresearch's
        code.
      freq_shift: the frequencies of the time end at 1e-4 with 1, as in diffusers, and before it
        with 0, as in facebookresearch's code.
      dtype: type of the computation, "float32" or "bfloat16"; parameters, embeddings and the
        output are float32.
      remat: activations that blocks store for the backward pass: "none", "dots", "full", see
        layers.remat.
      attention_kernel: kernel of the attention, "auto", "xla" or "cudnn", see layers.attention.

    Raises:
      ValueError: when a size does not divide another, or for an unknown name.
    """

    spec: Spec
    patch: int = option(whole(1, high=MAX_WIDTH), 2)
    width: int = option(whole(4, 4, MAX_WIDTH), 1152)
    blocks: int = option(whole(1, high=1024), 28)
    heads: int = option(whole(1, high=1024), 16)
    epsilon: float = option(number(0, 1, without=(0,)), 1e-5)
    freq_shift: int = option(whole(0, high=1), 1)
    dtype: str = option(choice(DTYPES), "float32")
    remat: str = option(choice(REMAT), "none")
    attention_kernel: str = option(choice(ATTENTION_KERNELS), "auto")

    def __post_init__(self) -> None:
        check_options(self)
        check_patch(self.patch, *self.spec.shape[:2])
        if self.width % self.heads:
            raise ValueError(f"width {self.width} must be divisible by heads = {self.heads}")


class DiffusersDiT(nn.Module):
    """The network: transformer blocks on the patches of the latent."""

    arch: Architecture

    @nn.compact
    def __call__(self, z: Image, t: Time, cond: Cond) -> Output:
        arch, dtype, single = self.arch, jnp.dtype(self.arch.dtype), jnp.dtype("float32")
        batch, height, width, _ = z.shape
        check_patch(arch.patch, height, width)
        counts = height // arch.patch, width // arch.patch
        emb = nn.swish(self._embed(t, cond))

        sides = (arch.patch, arch.patch)
        patches = nn.Conv(arch.width, sides, sides, "VALID", dtype=dtype, name="pos_embed.proj")(z)
        h = patches.reshape(batch, -1, arch.width) + self._places(counts).astype(dtype)
        # For the features of the middle, later blocks do not run, because the output is unused.
        asked = self.is_mutable_collection("features") and not self.is_initializing()
        first = middle_of(arch.blocks) + 1 if asked else arch.blocks
        blocks = stacked(Block, arch.remat, arch.blocks, first)
        name, options = f"transformer_blocks[0:{arch.blocks}]", (arch.heads, arch.epsilon, dtype)
        h, _ = blocks(*options, arch.attention_kernel, name=name)(h, emb)
        self.sow("features", "middle", h)

        mod = nn.Dense(2 * arch.width, dtype=dtype, name="proj_out_1")(emb)
        h = modulate(layer_norm(NORM, dtype)(h), *jnp.split(mod[:, None], 2, axis=-1))
        # In float32, as in the UNets, because rounding here is an error of every target.
        out = nn.Dense(arch.patch**2 * arch.spec.channels_out, dtype=single, name="proj_out_2")
        h = out(h.astype(single)).reshape(batch, *counts, *sides, arch.spec.channels_out)
        return jnp.swapaxes(h, 2, 3).reshape(batch, height, width, arch.spec.channels_out)

    def _embed(self, t: Time, cond: Cond) -> jax.Array:
        """Returns one float32 vector per example, which embeds the noise level and conditions."""
        width, part = self.arch.width, "emb.timestep_embedder.linear"
        emb = cosines_and_sines(TIMESTEPS * t - 1, CHANNELS, self.arch.freq_shift)
        emb = nn.Dense(width, name=f"{part}_2")(nn.swish(nn.Dense(width, name=f"{part}_1")(emb)))
        if "label" in cond:
            classes, name = self.arch.spec.classes("label"), "emb.class_embedder.embedding_table"
            emb += nn.Embed(classes + 1, width, name=name)(cond["label"])
        return with_numbers(emb, cond, W_SCALE)

    def _places(self, counts: tuple[int, int]) -> jax.Array:
        """Returns the embedding of the places of the patches (rows columns, width), x before y.

        A latent of another size has its patches at i full / count.
        """
        half, axes = self.arch.width // 2, []
        for count, side in zip(counts, self.arch.spec.shape[:2], strict=True):
            places = np.arange(count) * (side // self.arch.patch / count)
            axes.append(position_embedding(places, np.zeros(1), 2 * half)[:, :half])
        y, x = (jnp.broadcast_to(a, (*counts, half)) for a in (axes[0][:, None], axes[1][None]))
        return jnp.concatenate([x, y], axis=-1).reshape(-1, 2 * half)


@takes_fields(Architecture)
def diffusers_dit(spec: Spec, **options: Any) -> Network:
    """Returns the transformer for the latents of a spec.

    With the same parameters it also takes latents of other sizes that the patch divides. New
    parameters are drawn leaf by leaf from their shapes.

    Args:
      spec: spec of the latents and conditions.
      **options: the other attributes of Architecture.

    Raises:
      ValueError: when the options do not fit the spec or each other.
    """
    network = as_network(DiffusersDiT(Architecture(spec, **options)), features=True)
    zero = ("norm1.linear/kernel", "proj_out_1/kernel", "proj_out_2/kernel", "Dense_1/kernel")
    return network._replace(init=fresh(network.init, zero))
