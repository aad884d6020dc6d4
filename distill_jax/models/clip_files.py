"""Reading of CLIP from a directory, with the names of Hugging Face or of OpenCLIP."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.models.clip import (
    MEAN,
    OLD_EOS,
    STD,
    ClipImage,
    ClipText,
    ImageOptions,
    TextOptions,
)
from distill_jax.models.pretrained import (
    WEIGHTS,
    find_weights,
    read_config,
    read_options,
    read_weights,
    variables_of,
)
from distill_jax.runtime.files import absolute, read_json
from distill_jax.runtime.options import every, number
from distill_jax.runtime.text import reason, short
from distill_jax.storage.weights import Stored
from distill_jax.typing import Tree

OPEN_CLIP = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
ADVICE = "take the config.json that was published with it"
SHARES = every(number(0, 1), 3, 3)


class Clip(NamedTuple):
    """A CLIP network on disk.

    Attributes:
      directory: its directory.
      content: content of config.json, or of open_clip_config.json in the same form.
      file: file of the weights.
      state: arrays by their names in Hugging Face's whole network, not read yet.
      mean: mean of the pixels from 0 to 1.
      std: their standard deviation.
    """

    directory: epath.Path
    content: dict[str, Any]
    file: epath.Path
    state: dict[str, Stored]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def text_options(self) -> TextOptions:
        """Returns the options of the text tower; raises ValueError for those of another network."""
        return read_options(TextOptions, *self._part("text"))

    def text(self) -> tuple[ClipText, Tree]:
        """Returns the text tower and its variables.

        Raises:
          ValueError: for other options or weights than those of a text tower.
        """
        options = self.text_options()
        module = ClipText(options, projected="text_projection.weight" in self.state)
        like = jnp.zeros((1, options.max_position_embeddings), jnp.int32)
        return module, variables_of(module, like, self.state, self.file, ADVICE)

    def image(self) -> tuple[ClipImage, Tree]:
        """Returns the image tower and its variables.

        Raises:
          ValueError: for other options or weights than those of an image tower.
        """
        options = read_options(ImageOptions, *self._part("vision"))
        like = jnp.zeros((1, options.image_size, options.image_size, 3))
        return (module := ClipImage(options)), variables_of(
            module, like, self.state, self.file, ADVICE
        )

    def _part(self, name: str) -> tuple[Any, str]:
        """Returns the part of the config for one tower, and its place for messages."""
        place = f"{self.directory}: {name}_config"
        if f"{name}_config" not in self.content:  # The config of one tower alone.
            return self.content, str(self.directory)
        parts = [self.content[f"{name}_config"], self.content.get(f"{name}_config_dict") or {}]
        if not all(isinstance(part, Mapping) for part in parts):
            raise ValueError(f"{place} is {short(parts[0])}; expected an object")
        whole = {"projection_dim": self.content.get("projection_dim", 512)}
        return {**parts[0], **parts[1], **whole}, place


def read_clip(directory: epath.PathLike, names: Sequence[str] = ()) -> Clip:
    """Opens a directory with config.json or open_clip_config.json, and weights.

    Args:
      directory: the directory.
      names: names of files of weights that come before the usual ones.

    Raises:
      ValueError: if a file is missing, damaged or of another network.
    """
    folder = absolute(directory)
    content = read_config(folder, ("config.json", "open_clip_config.json"))
    if "model_cfg" in content:
        try:
            content = _of_open_clip_config(content)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise ValueError(
                f"{folder}/open_clip_config.json does not describe a CLIP of two transformers "
                f"({reason(error)})"
            ) from error
    file = find_weights(folder, (*names, *WEIGHTS, *OPEN_CLIP))
    return Clip(folder, content, file, named_as_whole(read_weights(file)), *_pixels(folder))


def _pixels(folder: epath.Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns mean and std of the pixels, from preprocessor_config.json if there is one."""
    place = folder / "preprocessor_config.json"
    content = read_json(place) if place.exists() else {}
    found = []
    for key, default in (("image_mean", MEAN), ("image_std", STD)):
        value = content.get(key, default)
        if not SHARES.allows(value) or (key == "image_std" and 0 in value):
            raise ValueError(f"{place}: {key} is {short(value)}; expected 3 numbers from 0 to 1")
        found.append(tuple(map(float, value)))
    return found[0], found[1]


def named_as_whole(state: Mapping[str, Stored]) -> dict[str, Stored]:
    """Returns arrays by their names in the whole network, with those of OpenCLIP renamed.

    A tower that transformers 5 saved by itself has no prefix text_model or vision_model.
    """
    if "visual.proj" in state:
        return _of_open_clip(state)
    ends = {"embeddings.token_embedding.weight": "text_model."}
    ends["embeddings.class_embedding"] = "vision_model."
    start = next((start for name, start in ends.items() if name in state), "")
    whole = ("text_projection", "visual_projection", "logit_scale")
    return {name if name.startswith(whole) else start + name: leaf for name, leaf in state.items()}


# Names of OpenCLIP, without the prefix "visual." of the image tower, and those of Hugging Face.
PARTS = {
    "token_embedding.": "embeddings.token_embedding.",
    "positional_embedding": "embeddings.position_embedding.weight",
    "class_embedding": "embeddings.class_embedding",
    "conv1.": "embeddings.patch_embedding.",
    "ln_pre.": "pre_layrnorm.",
    "ln_post.": "post_layernorm.",
    "ln_final.": "final_layer_norm.",
    "transformer.resblocks.": "encoder.layers.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.": ".self_attn.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


def _of_open_clip(state: Mapping[str, Stored]) -> dict[str, Stored]:
    """Returns the arrays of an OpenCLIP checkpoint by their names in Hugging Face's."""
    whole = {"visual.proj": "visual_projection.weight", "text_projection": "text_projection.weight"}
    found = {}
    for name, leaf in state.items():
        if name in whole:
            found[whole[name]] = leaf.changed(np.transpose)
            continue
        image = name.startswith("visual.")
        new = name.removeprefix("visual.")
        for old, part in PARTS.items():
            new = new.replace(old, part)
        if name != "logit_scale":
            new = f"{'vision' if image else 'text'}_model.{new}"
        if ".in_proj_" not in new:
            found[new] = leaf
            continue
        for i, part in enumerate("qkv"):  # One array holds the three.
            third = functools.partial(_third, i)
            found[new.replace("in_proj_", f"{part}_proj.")] = leaf.changed(third)
    return found


def _third(i: int, x: np.ndarray) -> np.ndarray:
    size = len(x) // 3
    return x[i * size : (i + 1) * size]


def _of_open_clip_config(content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of an open_clip_config.json in the form of config.json."""
    model = content["model_cfg"]
    image, text = model["vision_cfg"], model["text_cfg"]
    activation = {"hidden_act": "quick_gelu" if model.get("quick_gelu") else "gelu"}
    return {
        "projection_dim": model["embed_dim"],
        "vision_config": {
            **activation,
            "hidden_size": image["width"],
            "intermediate_size": int(image["width"] * image.get("mlp_ratio", 4.0)),
            "num_hidden_layers": image["layers"],
            "num_attention_heads": image["width"] // image.get("head_width", 64),
            "image_size": image["image_size"],
            "patch_size": image["patch_size"],
        },
        "text_config": {
            **activation,
            "hidden_size": text["width"],
            "intermediate_size": int(text["width"] * text.get("mlp_ratio", 4.0)),
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "eos_token_id": OLD_EOS,  # OpenCLIP takes the largest number.
        },
    }
