"""CLIP's towers for texts and images; modules are named as in Hugging Face's checkpoints.

Radford et al. (2021, arXiv:2103.00020). The text tower is also the text encoder of Stable
Diffusion, SDXL, SD3 and FLUX. Directories are read by models.clip_files.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.runtime.options import (
    MAX_BLOCKS,
    MAX_WIDTH,
    check_options,
    choice,
    number,
    option,
    whole,
)

MEAN = (0.48145466, 0.4578275, 0.40821073)  # Of pixels from 0 to 1, for both OpenAI and OpenCLIP.
STD = (0.26862954, 0.26130258, 0.27577711)
MAX_PATCH = 64  # Largest side of a patch in pixels.
# The eos_token_id of configs before transformers 4.31, which is not the token's number.
OLD_EOS = 2


def quick_gelu(x: jax.Array) -> jax.Array:
    """Returns x sigmoid(1.702 x), the activation of OpenAI's CLIP."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": jax.nn.gelu,
    "gelu_pytorch_tanh": jax.nn.gelu,
}


@dataclasses.dataclass(frozen=True)
class TextOptions:
    """The options of a text tower, with the names and defaults of config.json.

    Raises:
      ValueError: for a value that breaks its rule.
    """

    hidden_size: int = option(whole(1, high=MAX_WIDTH), 512)
    intermediate_size: int = option(whole(1, high=MAX_WIDTH), 2048)
    num_hidden_layers: int = option(whole(1, high=MAX_BLOCKS), 12)
    num_attention_heads: int = option(whole(1, high=1024), 8)
    hidden_act: str = option(choice(ACTIVATIONS), "quick_gelu")
    layer_norm_eps: float = option(number(1e-12, 1.0), 1e-5)
    vocab_size: int = option(whole(1, high=2**20), 49408)
    max_position_embeddings: int = option(whole(1, high=2**16), 77)
    projection_dim: int = option(whole(1, high=MAX_WIDTH), 512)
    eos_token_id: int = option(whole(0), 49407)

    def __post_init__(self) -> None:
        check_options(self)
        check_heads(self)


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """The options of an image tower, with the names and defaults of config.json.

    Raises:
      ValueError: for a value that breaks its rule.
    """

    hidden_size: int = option(whole(1, high=MAX_WIDTH), 768)
    intermediate_size: int = option(whole(1, high=MAX_WIDTH), 3072)
    num_hidden_layers: int = option(whole(1, high=MAX_BLOCKS), 12)
    num_attention_heads: int = option(whole(1, high=1024), 12)
    hidden_act: str = option(choice(ACTIVATIONS), "quick_gelu")
    layer_norm_eps: float = option(number(1e-12, 1.0), 1e-5)
    image_size: int = option(whole(1, high=8192), 224)
    patch_size: int = option(whole(1, high=MAX_PATCH), 32)
    projection_dim: int = option(whole(1, high=MAX_WIDTH), 512)

    def __post_init__(self) -> None:
        check_options(self)
        check_heads(self)
        check_patch(self.image_size, self.patch_size)


def check_patch(image_size: int, patch_size: int) -> None:
    """Raises ValueError if an image is smaller than a patch."""
    if image_size < patch_size:
        raise ValueError(f"image_size {image_size} must be at least patch_size = {patch_size}")


def check_heads(options: Any) -> None:
    """Raises ValueError unless the heads of a transformer's options divide its width."""
    if options.hidden_size % options.num_attention_heads:
        raise ValueError(
            f"hidden_size {options.hidden_size} must be divisible by num_attention_heads = "
            f"{options.num_attention_heads}"
        )


class TextOutputs(NamedTuple):
    """The outputs of the text tower.

    Attributes:
      last: tokens after the final norm (b, n, hidden_size); the condition of Stable Diffusion.
      penultimate: tokens before the last layer, without the norm; the condition of SDXL and SD3.
      pooled: the token of `last` at the end of the text (b, hidden_size).
      embeds: `pooled` after the projection (b, projection_dim); None without one.
    """

    last: jax.Array
    penultimate: jax.Array
    pooled: jax.Array
    embeds: jax.Array | None


class ClipText(nn.Module):
    """The text tower: CLIPTextModel, with a projection CLIPTextModelWithProjection.

    Attributes:
      options: the options.
      projected: whether there is a projection.
    """

    options: TextOptions
    projected: bool = True

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array | None = None) -> TextOutputs:
        """Returns the outputs for token numbers (b, n), n at most max_position_embeddings.

        Args:
          ids: int32 token numbers, each text with its end token.
          mask: (b, n), True for tokens that others may attend to; None for all. A token never
            attends to later ones.
        """
        last, penultimate = _TextTower(self.options, name="text_model")(ids, mask)
        # Configs before transformers 4.31 have a wrong number, and the end is the largest number.
        eos = self.options.eos_token_id
        where = jnp.argmax(ids if eos == OLD_EOS else ids == eos, axis=-1)
        pooled = jnp.take_along_axis(last, where[:, None, None], axis=1)[:, 0]
        embeds = None
        if self.projected:
            embeds = _projection(self.options.projection_dim, "text_projection")(pooled)
        return TextOutputs(last, penultimate, pooled, embeds)


class _TextTower(nn.Module):
    """The embeddings, layers and final norm of the text tower; returns `last`, `penultimate`."""

    options: TextOptions

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        options = self.options
        count, width = ids.shape[1], options.hidden_size
        table = nn.Embed(options.vocab_size, width, name="embeddings.token_embedding")
        positions = nn.Embed(
            options.max_position_embeddings, width, name="embeddings.position_embedding"
        )
        h = table(ids) + positions(jnp.arange(count))
        seen = jnp.asarray(np.tril(np.ones((1, 1, count, count), bool)))
        if mask is not None:
            seen = seen & mask.astype(bool)[:, None, None]
        before = h
        for layer in range(options.num_hidden_layers):
            before, h = h, Layer(options, name=f"encoder.layers.{layer}")(h, seen)
        return _norm(options, "final_layer_norm")(h), before


class ClipImage(nn.Module):
    """The image tower with its projection: CLIPVisionModelWithProjection."""

    options: ImageOptions

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the embeddings (b, projection_dim) of images (b, image_size, image_size, 3).

        Args:
          x: pixels from 0 to 1, less MEAN, over STD.
        """
        pooled = _ImageTower(self.options, name="vision_model")(x)
        return _projection(self.options.projection_dim, "visual_projection")(pooled)


class _ImageTower(nn.Module):
    """The embeddings, layers and norms of the image tower; returns the normed class token."""

    options: ImageOptions

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options = self.options
        width, side = options.hidden_size, (options.patch_size,) * 2
        conv = nn.Conv(
            width, side, side, "VALID", use_bias=False, name="embeddings.patch_embedding"
        )
        patches = conv(x).reshape(len(x), -1, width)
        first = self.param("embeddings.class_embedding", nn.initializers.normal(), (width,))
        h = jnp.concatenate([jnp.broadcast_to(first, (len(x), 1, width)), patches], axis=1)
        count = (options.image_size // options.patch_size) ** 2 + 1
        positions = nn.Embed(count, width, name="embeddings.position_embedding")
        h = _norm(options, "pre_layrnorm")(h + positions(jnp.arange(count)))  # Spelled like that.
        for layer in range(options.num_hidden_layers):
            h = Layer(options, name=f"encoder.layers.{layer}")(h)
        return _norm(options, "post_layernorm")(h[:, 0])


class Layer(nn.Module):
    """A layer of either tower: attention and an MLP, each after a norm and with a residual."""

    options: TextOptions | ImageOptions

    @nn.compact
    def __call__(self, h: jax.Array, seen: jax.Array | None = None) -> jax.Array:
        options = self.options
        heads = (options.num_attention_heads, options.hidden_size // options.num_attention_heads)
        y = _norm(options, "layer_norm1")(h)
        q, k, v = (
            nn.Dense(options.hidden_size, name=f"self_attn.{name}_proj")(y).reshape(
                *y.shape[:2], *heads
            )
            for name in "qkv"
        )
        y = jax.nn.dot_product_attention(q, k, v, mask=seen, implementation="xla")
        h += nn.Dense(options.hidden_size, name="self_attn.out_proj")(y.reshape(h.shape))
        y = _norm(options, "layer_norm2")(h)
        y = ACTIVATIONS[options.hidden_act](nn.Dense(options.intermediate_size, name="mlp.fc1")(y))
        return h + nn.Dense(options.hidden_size, name="mlp.fc2")(y)


def _norm(options: TextOptions | ImageOptions, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=options.layer_norm_eps, use_fast_variance=False, name=name)


def _projection(width: int, name: str) -> nn.Dense:
    return nn.Dense(width, use_bias=False, name=name)
