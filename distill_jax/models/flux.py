"""The transformer of FLUX.1, with the names of FluxTransformer2DModel in diffusers.

Black Forest Labs (2024, github.com/black-forest-labs/flux): blocks as in Stable Diffusion 3, with
two streams of tokens, are followed by blocks with one (Dehghani et al. 2023, arXiv:2302.05442:
attention and MLP in parallel). Places are rotations of queries and keys (Su et al. 2021,
arXiv:2104.09864). The defaults are FLUX.1 schnell; dev has `guidance` too. The path of a parameter,
joined by dots, is its name in a checkpoint; equal blocks are stacked, see models.pretrained.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.denoiser import Network
from distill_jax.diffusion.spec import Spec
from distill_jax.models.diffusers_dit import CHANNELS, TIMESTEPS
from distill_jax.models.dit import check_patch
from distill_jax.models.layers import (
    ATTENTION_KERNELS,
    DTYPES,
    REMAT,
    as_network,
    cosines_and_sines,
    fresh,
    modulate,
    stacked,
)
from distill_jax.models.mmdit import Block, Layer, Streams, Transformer
from distill_jax.runtime.options import (
    MAX_WIDTH,
    check_options,
    choice,
    every,
    option,
    takes_fields,
    whole,
)
from distill_jax.typing import Cond, Image, Output, Time

THETA = 10000.0  # The first frequency of an axis is 1, and its last is almost 1 / THETA.


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The options of the transformer, checked against each other.

    Attributes:
      spec: spec of the latents and conditions. The network reads "text" (n, d), "pooled" (d,), a
        vector of the whole text, and "label". All tokens are attended to.
      patch: side of the square patches, which divides the sides of the latent.
      blocks: number of blocks with two streams.
      singles: number of blocks with one stream, after those.
      heads: number of attention heads.
      head_dim: channels of a head.
      axes: channels of a head that an index, 0 in every latent, the row and the column rotate.
      guidance: whether "w" is embedded like the time, as the guidance scale 1 + w, in FLUX.1 dev.
        Without it, "w" is a new input that starts without effect, as in the other networks.
      dtype: type of the computation, "float32" or "bfloat16"; parameters, embeddings and the
        output are float32.
      remat: activations that blocks store for the backward pass: "none", "dots", "full", see
        layers.remat.
      attention_kernel: kernel of the attention, "auto", "xla" or "cudnn", see layers.attention.

    Raises:
      ValueError: when a size does not divide another, for axes that do not add up to a head, and
        for an unknown name.
    """

    qk_norm: ClassVar[bool] = True
    spec: Spec
    patch: int = option(whole(1, high=MAX_WIDTH), 2)
    blocks: int = option(whole(1, high=1024), 19)
    singles: int = option(whole(1, high=1024), 38)
    heads: int = option(whole(1, high=1024), 24)
    head_dim: int = option(whole(2, 2, MAX_WIDTH), 128)
    axes: tuple[int, ...] = option(every(whole(2, 2, MAX_WIDTH), 3, 3), (16, 56, 56))
    guidance: bool = False
    dtype: str = option(choice(DTYPES), "float32")
    remat: str = option(choice(REMAT), "none")
    attention_kernel: str = option(choice(ATTENTION_KERNELS), "auto")

    def __post_init__(self) -> None:
        check_options(self)
        check_patch(self.patch, *self.spec.shape[:2])
        if sum(self.axes) != self.head_dim:
            raise ValueError(
                f"axes are {self.axes}, {sum(self.axes)} channels; expected as many as head_dim = "
                f"{self.head_dim}"
            )

    @property
    def width(self) -> int:
        """The width of the tokens."""
        return self.heads * self.head_dim


class Placed(Layer):
    """The parts of a block whose queries and keys are rotated by the places of the patches.

    Attributes:
      counts: rows and columns of patches, whose tokens are the first.
    """

    counts: tuple[int, int] = (0, 0)

    def _attend(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        """Returns the attention of all tokens to all, (b, n, width); a text is at place 0."""
        places = angles(self.arch.axes, self.counts)
        places = np.pad(places, ((0, q.shape[1] - len(places)), (0, 0)))
        turns = jnp.asarray(np.stack([np.cos(places), np.sin(places)]), jnp.float32)
        return super()._attend(rotated(q, turns), rotated(k, turns), v)


class Double(Placed, Block):
    """A block with two streams, as in Stable Diffusion 3."""


class Single(Placed):
    """A block of attention and an MLP in parallel, modulated and gated by the conditioning."""

    @nn.compact
    def __call__(self, h: jax.Array, emb: jax.Array) -> tuple[jax.Array, None]:
        shift, scale, gate = self._modulation("norm", emb, 3)
        y = modulate(self._norm(h), shift, scale)
        seen = self._attend(*self._heads(y, "attn", "to_{}", "norm_{}"))
        hidden = nn.gelu(self._dense("proj_mlp", 4)(y))
        both = jnp.concatenate([seen, hidden], axis=-1)
        return h + gate * self._dense("proj_out")(both), None


class Flux(Transformer):
    """The network: blocks on the patches of the latent and the tokens of the text."""

    @nn.compact
    def __call__(self, z: Image, t: Time, cond: Cond) -> Output:
        arch, patch = self.arch, self.arch.patch
        batch, height, width, channels = z.shape
        check_patch(patch, height, width)
        counts = height // patch, width // patch
        emb = nn.swish(self._embed(t, cond))

        # In a patch, channels come before rows and columns.
        h = z.reshape(batch, counts[0], patch, counts[1], patch, channels)
        h = h.transpose(0, 1, 3, 5, 2, 4).reshape(batch, -1, channels * patch**2)
        h = nn.Dense(arch.width, dtype=self._dtype, name="x_embedder")(h)
        h = self._blocks((h, self._text(cond, batch)), emb, counts)
        self.sow("features", "middle", h)

        h = self._output(h, emb).reshape(batch, *counts, arch.spec.channels_out, patch, patch)
        return h.transpose(0, 1, 4, 2, 5, 3).reshape(batch, height, width, arch.spec.channels_out)

    def _blocks(self, streams: Streams, emb: jax.Array, counts: tuple[int, int]) -> jax.Array:
        """Returns the tokens of the patches after a scan over each kind of block."""
        arch = self.arch
        first = self._called(arch.blocks + arch.singles)
        blocks = stacked(Double, arch.remat, arch.blocks, min(first, arch.blocks))
        name = f"transformer_blocks[0:{arch.blocks}]"
        (h, c), _ = blocks(arch, counts=counts, name=name)(streams, emb)
        if first <= arch.blocks:
            return h
        singles = stacked(Single, arch.remat, arch.singles, first - arch.blocks)
        name = f"single_transformer_blocks[0:{arch.singles}]"
        # The order of tokens, the text first in diffusers, does not change their attention.
        joint, _ = singles(arch, counts=counts, name=name)(jnp.concatenate([h, c], axis=1), emb)
        return joint[:, : h.shape[1]]

    def _embed(self, t: Time, cond: Cond) -> jax.Array:
        """Returns one float32 vector per example, which embeds the noise level and conditions."""
        if not self.arch.guidance or "w" not in cond:
            return super()._embed(t, cond)
        emb = super()._embed(t, {name: x for name, x in cond.items() if name != "w"})
        scale = cosines_and_sines(TIMESTEPS * (1 + cond["w"]), CHANNELS)
        return emb + self._embedder("guidance_embedder", scale)


def angles(axes: tuple[int, ...], counts: tuple[int, int]) -> np.ndarray:
    """Returns the angles of rows times columns patches, float64 (n, head_dim / 2).

    An axis of d channels has place 10000^(-2 k / d), k = 0 ... d / 2 - 1 (Su et al. 2021, 3.2.2).
    """
    rows, columns = (grid.reshape(-1, 1) for grid in np.indices(counts))
    places = np.zeros_like(rows), rows, columns
    parts = (x * THETA ** (-np.arange(0, d, 2) / d) for x, d in zip(places, axes, strict=True))
    return np.concatenate([*parts], axis=-1)


def rotated(x: jax.Array, turns: jax.Array) -> jax.Array:
    """Rotates neighbouring channels of (b, n, heads, head_dim), in float32.

    Args:
      x: queries or keys.
      turns: cosines and sines of the angles, (2, n, head_dim / 2).
    """
    cos, sin = turns[:, :, None]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


@takes_fields(Architecture)
def flux(spec: Spec, **options: Any) -> Network:
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
    network = as_network(Flux(Architecture(spec, **options)), features=True)
    # The layers proj_out in blocks are not zero, because their gates are.
    zero = [f"{name}.linear/kernel" for name in ("norm1", "norm1_context", "norm", "norm_out")]
    zero += ["guidance_embedder.linear_2/kernel", "Dense_1/kernel", "^proj_out/kernel"]
    return network._replace(init=fresh(network.init, zero))
