"""DINOv2, a vision transformer; modules are named as in Hugging Face's checkpoints.

Oquab et al. (2023, arXiv:2304.07193); the features of FD-DINOv2 (Stein et al. 2023,
arXiv:2306.04675) are its class token.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from etils import epath

from distill_jax.diffusion.resize import cubic_matrix
from distill_jax.models.clip import ACTIVATIONS, MAX_PATCH, check_heads, check_patch
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
from distill_jax.typing import Tree

SIDE = 224  # The side of the images of FD-DINOv2.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # Of pixels from 0 to 1.
HUB_OFFSET = 0.1  # That of the released code in torch.hub, see Options.offset.
NAMES = {384: "DINOv2-S", 768: "DINOv2-B", 1024: "DINOv2", 1536: "DINOv2-g"}  # By width.


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of the network, with the names and defaults of config.json.

    Attributes:
      offset: patches that are added to the number in the image before the distance of two of them
        on the grid of position embeddings is computed. The released code in torch.hub, which
        FD-DINOv2 is measured with, has 0.1; Hugging Face's has 0.

    Raises:
      ValueError: for a value that breaks its rule.
    """

    hidden_size: int = option(whole(1, high=MAX_WIDTH), 768)
    num_hidden_layers: int = option(whole(1, high=MAX_BLOCKS), 12)
    num_attention_heads: int = option(whole(1, high=1024), 12)
    mlp_ratio: float | int = option(number(0.01, 64), 4)
    hidden_act: str = option(choice(ACTIVATIONS), "gelu")
    layer_norm_eps: float = option(number(1e-12, 1.0), 1e-6)
    image_size: int = option(whole(1, high=8192), 224)
    patch_size: int = option(whole(1, high=MAX_PATCH), 14)
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False
    offset: float | int = option(number(0, 1), 0.0)

    def __post_init__(self) -> None:
        check_options(self)
        check_patch(self.image_size, self.patch_size)
        check_heads(self)


class Dinov2(nn.Module):
    """DINOv2 without registers: Dinov2Model."""

    options: Options

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the class token after the final norm (b, hidden_size).

        Args:
          x: images (b, h, w, 3), pixels from 0 to 1, less MEAN, over STD.
        """
        options = self.options
        width, side = options.hidden_size, (options.patch_size,) * 2
        name = "embeddings.patch_embeddings.projection"
        patches = nn.Conv(width, side, side, "VALID", name=name)(x)
        grid = options.image_size // options.patch_size
        positions, first = (
            self.param(f"embeddings.{name}", nn.initializers.normal(), (1, count, width))
            for name, count in (("position_embeddings", grid**2 + 1), ("cls_token", 1))
        )
        resized = positions[0, 1:].reshape(grid, grid, width)
        if patches.shape[1:3] != (grid, grid):
            rows, columns = (
                jnp.asarray(cubic_matrix(grid, n, grid / (n + options.offset)), x.dtype)
                for n in patches.shape[1:3]
            )
            resized = jnp.einsum("ih,hwc,jw->ijc", rows, resized, columns, precision="highest")
        h = (patches + resized).reshape(len(x), -1, width)
        first = jnp.broadcast_to(first + positions[:, :1], (len(x), 1, width))
        h = jnp.concatenate([first, h], axis=1)
        for layer in range(options.num_hidden_layers):
            h = _Layer(options, name=f"encoder.layer.{layer}")(h)
        return _norm(options, "layernorm")(h[:, 0])


class _Layer(nn.Module):
    """A layer: attention and an MLP, each after a norm, scaled, and with a residual."""

    options: Options

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        options, width = self.options, self.options.hidden_size
        y = _norm(options, "norm1")(h)
        heads = (*y.shape[:2], options.num_attention_heads, -1)
        q, k, v = (
            nn.Dense(width, options.qkv_bias, name=f"attention.attention.{name}")(y).reshape(heads)
            for name in ("query", "key", "value")
        )
        y = jax.nn.dot_product_attention(q, k, v, implementation="xla").reshape(h.shape)
        y = nn.Dense(width, name="attention.output.dense")(y)
        h += self._scale("layer_scale1.lambda1") * y
        y = self._mlp(_norm(options, "norm2")(h))
        return h + self._scale("layer_scale2.lambda1") * y

    def _scale(self, name: str) -> jax.Array:
        return self.param(name, nn.initializers.ones, (self.options.hidden_size,))

    def _mlp(self, y: jax.Array) -> jax.Array:
        options = self.options
        width, inner = options.hidden_size, int(options.hidden_size * options.mlp_ratio)
        if not options.use_swiglu_ffn:
            y = ACTIVATIONS[options.hidden_act](nn.Dense(inner, name="mlp.fc1")(y))
            return nn.Dense(width, name="mlp.fc2")(y)
        inner = (int(inner * 2 / 3) + 7) // 8 * 8
        gate, up = jnp.split(nn.Dense(2 * inner, name="mlp.weights_in")(y), 2, axis=-1)
        return nn.Dense(width, name="mlp.weights_out")(nn.swish(gate) * up)


def _norm(options: Options, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=options.layer_norm_eps, use_fast_variance=False, name=name)


def read_dinov2(directory: epath.PathLike) -> tuple[Dinov2, Tree, epath.Path]:
    """Returns the network of a directory of Hugging Face, its variables, and the file of weights.

    Raises:
      ValueError: if a file is missing, damaged or of another network.
    """
    folder = absolute(directory)
    content = read_config(folder)
    if content.get("model_type") != "dinov2":
        raise ValueError(
            f"{folder}/config.json has the model_type {short(content.get('model_type'))}; expected "
            "'dinov2', such as facebook/dinov2-large, which FD-DINOv2 is measured with"
        )
    options = read_options(Options, {**content, "offset": HUB_OFFSET}, f"{folder}/config.json")
    file = find_weights(folder)
    start = "dinov2."  # The prefix in a classifier's checkpoint.
    state = {name.removeprefix(start): leaf for name, leaf in read_weights(file).items()}
    module = Dinov2(options)
    like = jnp.zeros((1, options.image_size, options.image_size, 3))
    return module, variables_of(module, like, state, file, "take the config.json beside it"), file
