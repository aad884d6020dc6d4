"""The tiny autoencoders of the TAESD family: their layers follow from the names in their files.

Bohan (2023, github.com/madebyollin/taesd). Files `*encoder*` and `*decoder*` of PyTorch or
safetensors hold one list of layers each: convolutions, and blocks of three convolutions. A
convolution without a bias halves the image in the encoder, and follows a doubling in the decoder.
Some files also have blocks with a branch `pool` of 1x1 convolutions.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.models.pretrained import read_weights
from distill_jax.runtime.files import absolute
from distill_jax.runtime.options import Rule

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

LAYOUT = Rule(
    lambda text: isinstance(text, str) and re.fullmatch(r"[cdbp]{0,200}", text) is not None,
    "at most 200 letters: c, d, b or p",
)
LAYER = re.compile(r"(?:encoder\.|decoder\.)?(?:layers\.)?(\d+)\.(.+)")
GROUPS = 4  # Of the normalisation in `pool`.
MIDDLE = 4  # Channels in `pool` over those of its block.
Layers = Mapping[str, Mapping[str, jax.Array]]


def read(directory: epath.PathLike) -> dict[str, dict[str, dict[str, np.ndarray]]]:
    """Reads the layers of "encoder" and "decoder" from the files of a directory.

    Raises:
      ValueError: if a file is missing, damaged or of another network.
    """
    folder, found = absolute(directory), {}
    for name in ("encoder", "decoder"):
        files = [file for kind in SUFFIXES for file in sorted(folder.glob(f"*{name}*{kind}"))]
        if not files:
            raise ValueError(
                f"{folder} has no *{name}* file of {', '.join(SUFFIXES)}; expected those of a tiny "
                "autoencoder, such as taesd_encoder.pth and taesd_decoder.pth"
            )
        try:
            state = read_weights(files[0])
            arrays = {key: leaf.read(()) for key, leaf in state.items()}
            found[name] = layers_of(arrays)
        except (OSError, ValueError) as error:
            raise ValueError(f"{files[0]} cannot be read: {error}") from error
    if shapes(**describe(found)) != jax.tree.map(_shape, found):
        raise ValueError(f"the layers in {folder} do not fit each other")
    return found


def layout(layers: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns one letter for each layer.

    c is a convolution, d one that changes the size, b a block, p a block with `pool`.
    """
    letters = []
    for number in sorted(layers, key=int):
        layer = layers[number]
        if _is_conv(layer):
            letters.append("c" if "bias" in layer else "d")
        else:
            letters.append("p" if "pool.0.weight" in layer else "b")
    return "".join(letters)


def describe(params: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """Returns what the shapes of an encoder and decoder follow from; see `shapes`."""
    encoder, decoder = params["encoder"], params["decoder"]
    first, *_, last = (encoder[number] for number in sorted(encoder, key=int))
    return {
        "encoder": layout(encoder),
        "decoder": layout(decoder),
        "channels": last["weight"].shape[-1],
        "width": first["weight"].shape[-1],
    }


def shapes(encoder: str, decoder: str, channels: int, width: int) -> dict[str, Any]:
    """Returns the shapes and dtypes of the parameters.

    Args:
      encoder: layout of the encoder; its layers are numbered from 0.
      decoder: layout of the decoder.
      channels: channels of the latents.
      width: channels between the layers.
    """

    def convs(letters: str, first: int, last: int) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for number, letter in enumerate(letters):
            inputs = first if number == 0 else width
            outputs = last if number == len(letters) - 1 else width
            found[str(number)] = _layer(letter, inputs, outputs)
        return found

    return {"encoder": convs(encoder, 3, channels), "decoder": convs(decoder, channels, 3)}


def _layer(letter: str, inputs: int, outputs: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes of one layer."""
    sizes: dict[str, tuple[int, ...]] = {}
    if letter in "cd":
        sizes["weight"] = (3, 3, inputs, outputs)
        if letter == "c":
            sizes["bias"] = (outputs,)
    else:
        for number in (0, 2, 4):
            sizes[f"conv.{number}.weight"] = (3, 3, inputs, outputs)
            sizes[f"conv.{number}.bias"] = (outputs,)
    if letter == "p":
        middle = MIDDLE * inputs
        sizes["pool.0.weight"] = (1, 1, inputs, middle)
        sizes["pool.1.weight"] = sizes["pool.1.bias"] = (middle,)
        sizes["pool.3.weight"] = (1, 1, middle, outputs)
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in sizes.items()}


def _shape(leaf: np.ndarray) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def layers_of(state: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Returns the weights of a file by layer, numbered from 0, in our layout and float32.

    Raises:
      ValueError: for names or shapes of another network.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, value in state.items():
        match = LAYER.fullmatch(name)
        if not match or not re.fullmatch(r"(?:(?:conv|pool)\.\d\.)?(weight|bias)", match[2]):
            raise ValueError(f"{name!r} is no weight of a network of the TAESD family")
        leaf = np.asarray(value, np.float32)
        if leaf.ndim == 4:
            leaf = leaf.transpose(2, 3, 1, 0)
        elif leaf.ndim != 1:
            raise ValueError(f"{name!r} is of shape {leaf.shape}; expected 4 axes or 1")
        found.setdefault(match[1], {})[match[2]] = leaf
    if not found or any(_is_conv(layer) and layer["weight"].ndim != 4 for layer in found.values()):
        raise ValueError("the file has no convolutions of a network of the TAESD family")
    numbers = sorted(found, key=int)
    return {str(i): found[number] for i, number in enumerate(numbers)}


def encode(layers: Layers, x: jax.Array) -> jax.Array:
    """Encodes images (b, h, w, 3) in [0, 1] into latents (b, h / f, w / f, c)."""
    for number in sorted(layers, key=int):
        layer = layers[number]
        if _is_conv(layer):
            x = _conv(x, layer["weight"], layer.get("bias"), 1 if "bias" in layer else 2)
        else:
            x = _block(layer, x)
    return x


def decode(layers: Layers, z: jax.Array) -> jax.Array:
    """Decodes latents (b, h, w, c) into images (b, h f, w f, 3), about in [0, 1]."""
    z = jnp.tanh(z / 3) * 3
    for place, number in enumerate(sorted(layers, key=int)):
        layer = layers[number]
        if not _is_conv(layer):
            z = _block(layer, z)
            continue
        if "bias" not in layer:
            z = z.repeat(2, axis=1).repeat(2, axis=2)
        z = _conv(z, layer["weight"], layer.get("bias"))
        z = jax.nn.relu(z) if place == 0 else z
    return z


def factor(encoder: str) -> int:
    """Returns the side of an image over the side of its latent, from the encoder's layout."""
    return int(2 ** encoder.count("d"))


def _is_conv(layer: Mapping[str, object]) -> bool:
    return "weight" in layer


def _block(layer: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """Applies a block; where its channels change, `skip` is not supported by these files."""
    if "pool.0.weight" in layer:
        y = _group_norm(
            _conv(x, layer["pool.0.weight"]), layer["pool.1.weight"], layer["pool.1.bias"]
        )
        x = x + _conv(jax.nn.relu(y), layer["pool.3.weight"])
    y = x
    for number in (0, 2, 4):
        y = _conv(y, layer[f"conv.{number}.weight"], layer[f"conv.{number}.bias"])
        y = jax.nn.relu(y) if number < 4 else y
    return jax.nn.relu(x + y)


def _conv(
    x: jax.Array, kernel: jax.Array, bias: jax.Array | None = None, stride: int = 1
) -> jax.Array:
    side = kernel.shape[0] // 2
    y = jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(side, side)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y if bias is None else y + bias


def _group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    groups = x.reshape(*x.shape[:3], GROUPS, -1)
    mean = groups.mean(axis=(1, 2, 4), keepdims=True)
    variance = groups.var(axis=(1, 2, 4), keepdims=True)
    return ((groups - mean) / jnp.sqrt(variance + 1e-5)).reshape(x.shape) * scale + bias
