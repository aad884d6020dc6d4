"""Pieces that the network families share."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Network
from distill_jax.models import adapters
from distill_jax.typing import Cond, Image, Output, Time, Tree

zeros = nn.initializers.zeros_init()
DTYPES = ("float32", "bfloat16")
# What the blocks of a network keep for the backward pass; the rest is computed again there.
REMAT = {
    "none": None,
    "dots": jax.checkpoint_policies.dots_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def remat(block: type[nn.Module], policy: str) -> type[nn.Module]:
    """The block under a policy of REMAT: "none", "dots" or "full".

    "none" keeps everything, "dots" the results of matrix products and convolutions, "full" only
    the inputs of the blocks.
    """
    return block if REMAT[policy] is None else nn.remat(block, policy=REMAT[policy])


def sinusoid(u: Time, dim: int) -> jax.Array:
    """[sin(1000 u f_k), cos(1000 u f_k)], f_k from 1 down to 1e-4: (b,) -> (b, dim), dim even.

    Vaswani et al. (2017, arXiv:1706.03762), section 3.5, in the order and the ladder that
    Salimans & Ho (2022) released; u is in [0, 1].
    """
    half = dim // 2
    frequencies = jnp.exp(-jnp.log(10000.0) * jnp.arange(half) / (half - 1))
    angle = 1000.0 * u[:, None] * frequencies
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


class Conditioning(nn.Module):
    """One vector per example from the time and the conditions, each embedded and summed.

    The keys of `cond` decide what is embedded, so a network made with "w" has the parameters of
    one made without it and those under `w_embed`; see `with_numbers`.

    Attributes:
      width: of the vector.
      num_classes: labels are 0 .. num_classes - 1, and num_classes is the null label.
      w_scale: the w that is embedded like t = 1; w beyond it is legal.
    """

    width: int
    num_classes: int
    w_scale: float = 4.0

    @nn.compact
    def __call__(self, t: Time, cond: Cond) -> jax.Array:
        emb = nn.Dense(self.width, name="t_embed_0")(sinusoid(t, self.width))
        emb = nn.Dense(self.width, name="t_embed_1")(nn.swish(emb))
        if "label" in cond:
            emb += nn.Embed(self.num_classes + 1, self.width, name="label_embed")(cond["label"])
        return with_numbers(emb, cond, self.w_scale)


class ZeroEmbedding(nn.Module):
    """A number in [0, scale], embedded like the time, with a last layer that starts at zero."""

    width: int
    scale: float

    @nn.compact
    def __call__(self, number: Time) -> jax.Array:
        emb = nn.swish(nn.Dense(self.width)(sinusoid(number / self.scale, self.width)))
        return nn.Dense(self.width, kernel_init=zeros)(emb)


def with_numbers(emb: jax.Array, cond: Cond, w_scale: float) -> jax.Array:
    """emb + the embeddings of the numbers that students have and teachers lack, made by a module.

    They are `w_embed` of cond["w"], the guidance strength, and `target_embed` of cond["target"],
    the time in [0, 1] that a network which always sees pure noise is asked for (Gu et al. 2023,
    arXiv:2306.05544). Both start at zero: a student grafted from a teacher is that teacher until
    it is trained (Meng et al. 2023, section 3.1), at every w and for every target.

    Args:
      emb: (b, width), from the time and the label.
      cond: what the network is called with.
      w_scale: the w that is embedded like t = 1.
    """
    for name, scale in (("w", w_scale), ("target", 1.0)):
        if name in cond:
            emb += ZeroEmbedding(emb.shape[-1], scale, name=f"{name}_embed")(cond[name])
    return emb


def modulate(h: jax.Array, shift: jax.Array, scale: jax.Array) -> jax.Array:
    """h (1 + scale) + shift, the conditioning of adaLN (Peebles & Xie 2023, arXiv:2212.09748)."""
    return h * (1 + scale) + shift


def as_network(module: nn.Module, features: bool = False) -> Network:
    """The functions of a Linen module that is called with (z, t, cond).

    A layer of the module drops out exactly when it has a "dropout" stream (`self.has_rng`).

    Args:
      module: the network.
      features: whether it sows "middle", (b, positions, channels), into the collection "features".
        Nothing is computed for that unless it is asked for, and then XLA leaves out the half of
        the network that comes after it.
    """

    def init(key: jax.Array, z: Image, t: Time, cond: Cond) -> Tree:
        return module.init(key, z, t, cond)["params"]

    def apply(params: Tree, z: Image, t: Time, cond: Cond, key: jax.Array | None = None) -> Output:
        rngs = {} if key is None else {"dropout": key}
        return adapters.call(module, params, z, t, cond, rngs=rngs)

    def middle(params: Tree, z: Image, t: Time, cond: Cond) -> jax.Array:
        _, sown = adapters.call(module, params, z, t, cond, mutable=["features"])
        return sown["features"]["middle"][0].astype(jnp.float32)

    def axes(params: Tree, z: Image, t: Time, cond: Cond) -> dict[str, int]:
        return adapters.input_axes(module, params, z, t, cond)

    return Network(init, apply, middle if features else None, input_axes=axes)


def middle_of(blocks: int) -> int:
    """The index of the block, of so many in a row, whose output is the middle of the network."""
    return (blocks - 1) // 2
