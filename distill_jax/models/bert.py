"""BERT, a text encoder; modules are named as in Hugging Face's checkpoints.

Devlin et al. (2018, arXiv:1810.04805). MiniLM's sentence encoders are such networks (Wang et al.
2020, arXiv:2002.10957).
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath

from distill_jax.models.clip import ACTIVATIONS, check_heads
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


@dataclasses.dataclass(frozen=True)
class BertOptions:
    """The options of the network, with the names and defaults of config.json.

    Raises:
      ValueError: for a value that breaks its rule.
    """

    hidden_size: int = option(whole(1, high=MAX_WIDTH), 768)
    intermediate_size: int = option(whole(1, high=MAX_WIDTH), 3072)
    num_hidden_layers: int = option(whole(1, high=MAX_BLOCKS), 12)
    num_attention_heads: int = option(whole(1, high=1024), 12)
    hidden_act: str = option(choice(ACTIVATIONS), "gelu")
    layer_norm_eps: float = option(number(1e-12, 1.0), 1e-12)
    vocab_size: int = option(whole(1, high=2**20), 30522)
    max_position_embeddings: int = option(whole(1, high=2**16), 512)
    type_vocab_size: int = option(whole(1, high=2**16), 2)
    position_embedding_type: str = option(choice(("absolute",)), "absolute")

    def __post_init__(self) -> None:
        check_options(self)
        check_heads(self)


class Bert(nn.Module):
    """The network without its pooler: BertModel."""

    options: BertOptions

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Returns the last tokens (b, n, hidden_size) for token numbers (b, n).

        Args:
          ids: int32 token numbers, n at most max_position_embeddings, all of the first segment.
          mask: (b, n), True for tokens that all may attend to, at least one; None for all.
        """
        options = self.options
        words, positions, segments = (
            nn.Embed(count, options.hidden_size, name=f"embeddings.{name}_embeddings")
            for name, count in (
                ("word", options.vocab_size),
                ("position", options.max_position_embeddings),
                ("token_type", options.type_vocab_size),
            )
        )
        first = jnp.zeros((), jnp.int32)
        h = words(ids) + positions(jnp.arange(ids.shape[1])) + segments(first)
        h = _norm(options, "embeddings.LayerNorm")(h)
        for layer in range(options.num_hidden_layers):
            h = _Layer(options, name=f"encoder.layer.{layer}")(h, mask)
        return h


class _Layer(nn.Module):
    """A layer: attention and an MLP, each with a residual and a norm after it."""

    options: BertOptions

    @nn.compact
    def __call__(self, h: jax.Array, mask: jax.Array | None) -> jax.Array:
        options = self.options
        heads = (options.num_attention_heads, options.hidden_size // options.num_attention_heads)
        q, k, v = (
            nn.Dense(options.hidden_size, name=f"attention.self.{name}")(h).reshape(
                *h.shape[:2], *heads
            )
            for name in ("query", "key", "value")
        )
        seen = None if mask is None else mask.astype(bool)[:, None, None]
        y = jax.nn.dot_product_attention(q, k, v, mask=seen, implementation="xla")
        y = nn.Dense(options.hidden_size, name="attention.output.dense")(y.reshape(h.shape))
        h = _norm(options, "attention.output.LayerNorm")(h + y)
        y = nn.Dense(options.intermediate_size, name="intermediate.dense")(h)
        y = nn.Dense(options.hidden_size, name="output.dense")(ACTIVATIONS[options.hidden_act](y))
        return _norm(options, "output.LayerNorm")(h + y)


def _norm(options: BertOptions, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=options.layer_norm_eps, use_fast_variance=False, name=name)


# Names in old checkpoints, such as bert-base-uncased.
OLD = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


def bert_options(directory: epath.PathLike) -> BertOptions:
    """Reads the options in config.json; raises ValueError for those of another network."""
    place = absolute(directory) / "config.json"
    content = read_config(directory)
    if content.get("model_type") != "bert":
        raise ValueError(
            f"{place} has model_type {short(content.get('model_type'))}; expected bert"
        )
    return read_options(BertOptions, content, str(place))


def bert_state(directory: epath.PathLike) -> tuple[epath.Path, dict[str, Stored]]:
    """Returns the file of weights in a directory, and its arrays by their names in PyTorch."""
    file, state = find_weights(directory), {}
    for name, leaf in read_weights(file).items():
        name = name.removeprefix("bert.")  # Of networks with a head.
        for old, new in OLD.items():
            name = name.replace(old, new)
        state[name] = leaf
    return file, state


def read_bert(directory: epath.PathLike) -> tuple[Bert, Tree]:
    """Reads a directory with config.json and weights; returns the network and its variables.

    Raises:
      ValueError: if a file is missing, damaged or of another network.
    """
    module = Bert(bert_options(directory))
    file, state = bert_state(directory)
    like = jnp.zeros((1, 1), jnp.int32)
    return module, variables_of(module, like, state, file, "take the config.json beside it")
