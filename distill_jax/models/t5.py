"""The encoder of T5 1.1, a text encoder; modules are named as in Hugging Face's checkpoints.

Raffel et al. (2020, arXiv:1910.10683), with the gated activation of Shazeer (2020,
arXiv:2002.05202). It is a text encoder of PixArt, SD3 and FLUX.
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.models.pretrained import (
    find_weights,
    read_config,
    read_options,
    read_weights,
    variables_of,
)
from distill_jax.runtime.files import absolute
from distill_jax.runtime.options import (
    MAX_BLOCKS,
    MAX_WIDTH,
    check_options,
    choice,
    number,
    option,
    whole,
)
from distill_jax.runtime.text import short
from distill_jax.storage.weights import Stored
from distill_jax.typing import Tree

WORDS, COPY = "shared.weight", "encoder.embed_tokens.weight"  # A file has one of them, or both.


@dataclasses.dataclass(frozen=True)
class T5Options:
    """The options of the network, with the names of config.json and the defaults of T5 1.1 XXL.

    Raises:
      ValueError: for a value that breaks its rule.
    """

    d_model: int = option(whole(1, high=MAX_WIDTH), 4096)
    d_kv: int = option(whole(1, high=MAX_WIDTH), 64)
    d_ff: int = option(whole(1, high=MAX_WIDTH), 10240)
    num_layers: int = option(whole(1, high=MAX_BLOCKS), 24)
    num_heads: int = option(whole(1, high=1024), 64)
    relative_attention_num_buckets: int = option(whole(4, 4, 2**16), 32)
    relative_attention_max_distance: int = option(whole(2, high=2**20), 128)
    layer_norm_epsilon: float = option(number(1e-12, 1.0), 1e-6)
    feed_forward_proj: str = option(choice(("gated-gelu",)), "gated-gelu")
    vocab_size: int = option(whole(1, high=2**20), 32128)

    def __post_init__(self) -> None:
        check_options(self)
        least = self.relative_attention_num_buckets // 4
        if self.relative_attention_max_distance <= least:
            raise ValueError(
                f"relative_attention_max_distance is {self.relative_attention_max_distance}; "
                f"expected more than {least}, a quarter of relative_attention_num_buckets"
            )

    @property
    def hidden_size(self) -> int:
        """The width of the tokens."""
        return self.d_model

    @property
    def max_position_embeddings(self) -> int:
        """The largest number of tokens; distances have no limit."""
        return 2**16


class T5(nn.Module):
    """The network: T5EncoderModel; it computes in float32, whatever its parameters' dtypes are.

    Outside of jax.jit each layer is a call of one program, which widens the weights of one layer.
    """

    options: T5Options

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Returns the last tokens (b, n, d_model) for token numbers (b, n), after the final norm.

        Args:
          ids: int32 token numbers.
          mask: (b, n), True for tokens that all may attend to, at least one; None for all.
        """
        options, count = self.options, ids.shape[1]
        words = nn.Embed(options.vocab_size, options.d_model, name="shared")
        h = words(ids).astype(jnp.float32)
        name = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
        table = nn.Embed(options.relative_attention_num_buckets, options.num_heads, name=name)
        bias = table(buckets(options, count)).transpose(2, 0, 1)[None]  # (1, heads, n, n)
        for name in (f"encoder.block.{layer}" for layer in range(options.num_layers)):
            if self.is_initializing():
                h = _Layer(options, name=name)(h, bias, mask)
            else:
                h = _run(options, self.variables["params"][name], h, bias, mask)
        return _norm(options, "encoder.final_layer_norm")(h)


class _Layer(nn.Module):
    """A layer: attention and a gated MLP, each with a norm before it and a residual."""

    options: T5Options

    @nn.compact
    def __call__(self, h: jax.Array, bias: jax.Array, mask: jax.Array | None) -> jax.Array:
        options, part = self.options, "layer.0.SelfAttention"
        y = _norm(options, "layer.0.layer_norm")(h)
        heads = (*h.shape[:2], options.num_heads, options.d_kv)
        width = options.num_heads * options.d_kv
        q, k, v = (_dense(width, f"{part}.{name}")(y).reshape(heads) for name in "qkv")
        seen = None if mask is None else mask.astype(bool)[:, None, None]
        y = jax.nn.dot_product_attention(
            q, k, v, bias=bias, mask=seen, scale=1.0, implementation="xla"
        )
        h += _dense(options.d_model, f"{part}.o")(y.reshape(*h.shape[:2], width))
        y, part = _norm(options, "layer.1.layer_norm")(h), "layer.1.DenseReluDense"
        gate = nn.gelu(_dense(options.d_ff, f"{part}.wi_0")(y))
        y = gate * _dense(options.d_ff, f"{part}.wi_1")(y)
        return h + _dense(options.d_model, f"{part}.wo")(y)


@functools.partial(jax.jit, static_argnums=0)
def _run(
    options: T5Options, params: Tree, h: jax.Array, bias: jax.Array, mask: jax.Array | None
) -> jax.Array:
    """Returns the tokens after a layer with these parameters."""
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    found: Any = _Layer(options).apply({"params": wide}, h, bias, mask)
    return found


def _dense(width: int, name: str) -> nn.Dense:
    return nn.Dense(width, use_bias=False, name=name)


def _norm(options: T5Options, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(options.layer_norm_epsilon, use_fast_variance=False, name=name)


def buckets(options: T5Options, count: int) -> np.ndarray:
    """Returns the bucket of the distance from each query to each key, int32 (count, count).

    Half of the buckets are for keys after the query. Of each half, half are for single distances,
    and the others grow by a constant factor up to relative_attention_max_distance.
    """
    half = options.relative_attention_num_buckets // 2
    exact = half // 2
    distance = np.arange(count)[None] - np.arange(count)[:, None]
    far = np.maximum(abs(distance), exact).astype(np.float32) / np.float32(exact)
    # In float32, as in PyTorch, because the borders between buckets are at whole numbers.
    steps = np.log(far) / np.float32(math.log(options.relative_attention_max_distance / exact))
    grown = np.minimum(exact + (steps * np.float32(half - exact)).astype(np.int32), half - 1)
    near = np.where(abs(distance) < exact, abs(distance), grown)
    return (near + half * (distance > 0)).astype(np.int32)


def t5_options(directory: epath.PathLike) -> T5Options:
    """Reads the options in config.json; raises ValueError for those of another network."""
    place = absolute(directory) / "config.json"
    content = read_config(directory)
    if content.get("model_type") != "t5":
        raise ValueError(f"{place} has model_type {short(content.get('model_type'))}; expected t5")
    return read_options(T5Options, content, str(place))


def t5_state(directory: epath.PathLike) -> tuple[epath.Path, dict[str, Stored]]:
    """Returns the file of weights in a directory, and its arrays by their names in PyTorch."""
    file = find_weights(directory)
    state = read_weights(file)
    if COPY in state:
        state.setdefault(WORDS, state[COPY])
    return file, state


def read_t5(directory: epath.PathLike) -> tuple[T5, Tree]:
    """Reads a directory with config.json and weights; returns the network and its variables.

    The decoder of a whole T5 is passed over.

    Raises:
      ValueError: if a file is missing, damaged or of another network.
    """
    module = T5(t5_options(directory))
    file, state = t5_state(directory)
    like = jnp.zeros((1, 1), jnp.int32)
    return module, variables_of(module, like, state, file, "take the config.json beside it")
