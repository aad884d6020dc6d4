"""The transformer of Stable Diffusion 3 and 3.5, with the names of SD3Transformer2DModel.

Esser et al. (2024, arXiv:2403.03206): image and text are two streams of tokens with weights of
their own, which attend to each other. The defaults are Stable Diffusion 3.5 medium. The path of a
parameter, joined by dots, is its name in a checkpoint of diffusers; equal blocks are stacked, see
models.pretrained. The table of positions, a buffer of the checkpoint, is computed.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.denoiser import Network
from distill_jax.diffusion.spec import Spec
from distill_jax.models.diffusers_dit import CHANNELS, NORM, TIMESTEPS, W_SCALE, layer_norm
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
    remat,
    stacked,
    with_numbers,
)
from distill_jax.runtime.options import (
    MAX_WIDTH,
    check_options,
    choice,
    option,
    takes_fields,
    whole,
)
from distill_jax.typing import Cond, Image, Output, Time

Streams = tuple[jax.Array, jax.Array]  # Tokens of the image and of the text, (b, n, width) each.


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The options of the transformer, checked against each other.

    Attributes:
      spec: spec of the latents and conditions. The network reads "text" (n, d), "pooled" (d,), a
        vector of the whole text, and "label". All tokens are attended to.
      patch: side of the square patches, which divides the sides of the latent.
      blocks: number of transformer blocks.
      heads: number of attention heads.
      head_dim: channels of a head.
      dual: number of blocks, from the first, in which the image also attends to itself alone.
      qk_norm: whether queries and keys are normalised.
      places: side of the table of positions in patches, from whose middle those of a latent come.
      base: side in patches of the latents whose patches are 1 apart in the table.
      dtype: type of the computation, "float32" or "bfloat16"; parameters, embeddings and the
        output are float32.
      remat: activations that blocks store for the backward pass: "none", "dots", "full", see
        layers.remat.
      attention_kernel: kernel of the attention, "auto", "xla" or "cudnn", see layers.attention.

    Raises:
      ValueError: when a size does not divide another, for latents larger than the table, and for an
        unknown name.
    """

    spec: Spec
    patch: int = option(whole(1, high=MAX_WIDTH), 2)
    blocks: int = option(whole(1, high=1024), 24)
    heads: int = option(whole(1, high=1024), 24)
    head_dim: int = option(whole(4, 4, MAX_WIDTH), 64)
    dual: int = option(whole(0, high=1024), 13)
    qk_norm: bool = True
    places: int = option(whole(1, high=MAX_WIDTH), 384)
    base: int = option(whole(1, high=MAX_WIDTH), 64)
    dtype: str = option(choice(DTYPES), "float32")
    remat: str = option(choice(REMAT), "none")
    attention_kernel: str = option(choice(ATTENTION_KERNELS), "auto")

    def __post_init__(self) -> None:
        check_options(self)
        self.check_sides(*self.spec.shape[:2])
        if self.dual >= self.blocks:
            raise ValueError(f"dual is {self.dual}; expected less than blocks = {self.blocks}")

    @property
    def width(self) -> int:
        """The width of the tokens."""
        return self.heads * self.head_dim

    def check_sides(self, height: int, width: int) -> None:
        """Raises ValueError for latents that the patch or the table of positions does not fit."""
        check_patch(self.patch, height, width)
        if max(height, width) > self.places * self.patch:
            raise ValueError(
                f"the latent is {height}x{width}; the table of positions has {self.places} patches "
                f"of {self.patch}: expected sides of at most {self.places * self.patch}"
            )


class Layer(nn.Module):
    """The parts of a block, whose names are those of diffusers.

    Attributes:
      arch: the options of the network: heads, head_dim, width, qk_norm, dtype, attention_kernel.
    """

    arch: Any

    @property
    def _dtype(self) -> jnp.dtype:
        return jnp.dtype(self.arch.dtype)

    def _dense(self, name: str, times: int = 1) -> nn.Dense:
        """Returns a dense layer to a multiple of the width."""
        return nn.Dense(times * self.arch.width, dtype=self._dtype, name=name)

    def _norm(self, h: jax.Array) -> jax.Array:
        return layer_norm(NORM, self._dtype)(h)

    def _modulation(self, name: str, emb: jax.Array, parts: int) -> list[jax.Array]:
        """Returns shifts, scales and gates (b, 1, width)."""
        return jnp.split(self._dense(f"{name}.linear", parts)(emb)[:, None], parts, axis=-1)

    def _heads(self, y: jax.Array, part: str, layer: str, norm: str) -> list[jax.Array]:
        """Returns queries, keys and values (b, n, heads, head_dim)."""
        arch, found = self.arch, []
        for kind in "qkv":
            x = self._dense(f"{part}.{layer.format(kind)}")(y)
            x = x.reshape(*y.shape[:2], arch.heads, arch.head_dim)
            if arch.qk_norm and kind != "v":
                name = f"{part}.{norm.format(kind)}"
                x = nn.RMSNorm(NORM, dtype=self._dtype, use_fast_variance=False, name=name)(x)
            found.append(x)
        return found

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Returns the attention of all tokens to all, (b, n, width)."""
        return attention(q, k, v, self.arch.attention_kernel).reshape(*q.shape[:2], -1)

    def _mlp(self, name: str, y: jax.Array) -> jax.Array:
        return self._dense(f"{name}.net.2")(nn.gelu(self._dense(f"{name}.net.0.proj", 4)(y)))


class Block(Layer):
    """A block of joint attention and two MLPs, modulated and gated by the conditioning.

    Attributes:
      dual: whether the image also attends to itself alone.
      last: whether nothing reads the text after this block.
    """

    dual: bool = False
    last: bool = False

    @nn.compact
    def __call__(self, streams: Streams, emb: jax.Array) -> tuple[Streams, None]:
        h, c = streams
        mod = self._modulation("norm1", emb, 9 if self.dual else 6)
        y = self._norm(h)
        queries = modulate(y, mod[0], mod[1])
        text_mod = self._modulation("norm1_context", emb, 2 if self.last else 6)
        shift, scale = text_mod[1::-1] if self.last else text_mod[:2]
        of_text = modulate(self._norm(c), shift, scale)

        places = h.shape[1]
        mine = self._heads(queries, "attn", "to_{}", "norm_{}")
        theirs = self._heads(of_text, "attn", "add_{}_proj", "norm_added_{}")
        joint = (jnp.concatenate(pair, axis=1) for pair in zip(mine, theirs, strict=True))
        seen = self._attend(*joint)
        h += mod[2] * self._dense("attn.to_out.0")(seen[:, :places])
        if self.dual:
            alone = self._heads(modulate(y, mod[6], mod[7]), "attn2", "to_{}", "norm_{}")
            h += mod[8] * self._dense("attn2.to_out.0")(self._attend(*alone))
        h += mod[5] * self._mlp("ff", modulate(self._norm(h), mod[3], mod[4]))
        if self.last:
            return (h, c), None
        c += text_mod[2] * self._dense("attn.to_add_out")(seen[:, places:])
        c += text_mod[5] * self._mlp(
            "ff_context", modulate(self._norm(c), text_mod[3], text_mod[4])
        )
        return (h, c), None


class Transformer(nn.Module):
    """The parts of a network around its blocks, whose names are those of diffusers.

    Attributes:
      arch: the options of the network: spec, patch, width, dtype.
    """

    arch: Any

    @property
    def _dtype(self) -> jnp.dtype:
        return jnp.dtype(self.arch.dtype)

    def _called(self, blocks: int) -> int:
        """Returns how many of the blocks run: up to the middle for its features, else all."""
        asked = self.is_mutable_collection("features") and not self.is_initializing()
        return middle_of(blocks) + 1 if asked else blocks

    def _text(self, cond: Cond, batch: int) -> jax.Array:
        """Returns the tokens of the text (b, n, width); none without a text."""
        if "text" not in cond:
            return jnp.zeros((batch, 0, self.arch.width), self._dtype)
        dense = nn.Dense(self.arch.width, dtype=self._dtype, name="context_embedder")
        return dense(cond["text"])

    def _output(self, h: jax.Array, emb: jax.Array) -> jax.Array:
        """Returns the values of all patches, float32 (b, n, patch^2 channels)."""
        arch = self.arch
        modulation = nn.Dense(2 * arch.width, dtype=self._dtype, name="norm_out.linear")
        scale, shift = jnp.split(modulation(emb)[:, None], 2, axis=-1)
        h = modulate(layer_norm(NORM, self._dtype)(h), shift, scale)
        # In float32, as in the UNets, because rounding here is an error of every target.
        single = jnp.dtype("float32")
        out = nn.Dense(arch.patch**2 * arch.spec.channels_out, dtype=single, name="proj_out")
        return out(h.astype(single))

    def _embed(self, t: Time, cond: Cond) -> jax.Array:
        """Returns one float32 vector per example, which embeds the noise level and the text."""
        width, times = self.arch.width, TIMESTEPS * self.arch.spec.schedule.sigma(t)
        emb = self._embedder("timestep_embedder", cosines_and_sines(times, CHANNELS))
        if "pooled" in cond:
            emb += self._embedder("text_embedder", cond["pooled"])
        if "label" in cond:
            classes = self.arch.spec.classes("label")
            emb += nn.Embed(classes + 1, width, name="label_embed")(cond["label"])
        return with_numbers(emb, cond, W_SCALE)

    def _embedder(self, part: str, x: jax.Array) -> jax.Array:
        first, second = (
            nn.Dense(self.arch.width, name=f"time_text_embed.{part}.linear_{i}") for i in (1, 2)
        )
        return second(nn.swish(first(x)))


class MMDiT(Transformer):
    """The network: blocks on the patches of the latent and the tokens of the text."""

    @nn.compact
    def __call__(self, z: Image, t: Time, cond: Cond) -> Output:
        arch = self.arch
        batch, height, width, _ = z.shape
        arch.check_sides(height, width)
        counts, sides = (height // arch.patch, width // arch.patch), (arch.patch, arch.patch)
        emb = nn.swish(self._embed(t, cond))

        conv = nn.Conv(arch.width, sides, sides, "VALID", dtype=self._dtype, name="pos_embed.proj")
        h = conv(z).reshape(batch, -1, arch.width) + positions(arch, counts).astype(self._dtype)
        h = self._blocks((h, self._text(cond, batch)), emb, self._called(arch.blocks))
        self.sow("features", "middle", h)

        h = self._output(h, emb).reshape(batch, *counts, *sides, arch.spec.channels_out)
        return jnp.swapaxes(h, 2, 3).reshape(batch, height, width, arch.spec.channels_out)

    def _blocks(self, streams: Streams, emb: jax.Array, first: int) -> jax.Array:
        """Applies the first blocks: scans over those with dual attention, and over the others."""
        arch = self.arch
        last = arch.blocks - 1
        for start, end, dual in ((0, arch.dual, True), (arch.dual, last, False)):
            called = min(first, end) - start
            if called > 0:
                blocks = stacked(Block, arch.remat, end - start, called)
                streams, _ = blocks(arch, dual, name=f"transformer_blocks[{start}:{end}]")(
                    streams, emb
                )
        if first > last:
            block = remat(Block, arch.remat)(arch, last=True, name=f"transformer_blocks.{last}")
            streams, _ = block(streams, emb)
        return streams[0]


def positions(arch: Architecture, counts: tuple[int, int]) -> np.ndarray:
    """Returns the embedding of the places of rows times columns patches (n, width), x before y.

    They are the middle of a table whose places are base / places apart.
    """
    half, axes = arch.width // 2, []
    for count in counts:
        first = (arch.places - count) // 2
        # In float32, as in the table of a checkpoint.
        places = np.arange(first, first + count, dtype=np.float32)
        places /= np.float32(arch.places / arch.base)
        axes.append(position_embedding(places.astype(np.float64), np.zeros(1), 2 * half)[:, :half])
    y, x = (np.broadcast_to(a, (*counts, half)) for a in (axes[0][:, None], axes[1][None]))
    return np.concatenate([x, y], axis=-1).reshape(-1, 2 * half)


@takes_fields(Architecture)
def mmdit(spec: Spec, **options: Any) -> Network:
    """Returns the transformer for the latents of a spec; without a text, it has the image only.

    With the same parameters it also takes latents of other sizes that the patch divides. New
    parameters are drawn leaf by leaf from their shapes. The time of the network is the noise level
    sigma(t) of the schedule, times 1000: a rectified flow has its shift.

    Args:
      spec: spec of the latents and conditions.
      **options: the other attributes of Architecture.

    Raises:
      ValueError: when the options do not fit the spec or each other.
    """
    network = as_network(MMDiT(Architecture(spec, **options)), features=True)
    zero = ("norm1.linear/kernel", "norm1_context.linear/kernel", "norm_out.linear/kernel")
    return network._replace(init=fresh(network.init, (*zero, "proj_out/kernel", "Dense_1/kernel")))
