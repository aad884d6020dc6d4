"""Published text encoders: the networks that a directory may hold, by the model_type they have."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from distill_jax.models.bert import Bert, BertOptions, bert_options, read_bert
from distill_jax.models.clip import ClipText, TextOptions
from distill_jax.models.clip_files import OPEN_CLIP, read_clip
from distill_jax.models.pretrained import (
    WEIGHTS,
    digest_of,
    find_weights,
    read_config,
    read_options,
)
from distill_jax.models.t5 import T5, T5Options, read_t5, t5_options
from distill_jax.runtime.files import absolute
from distill_jax.runtime.text import short
from distill_jax.typing import Tree

FOLDER = "text_encoder"  # In a directory of a whole pipeline, such as Stable Diffusion's.
Options = TextOptions | BertOptions | T5Options


class Family(NamedTuple):
    """A kind of text encoder.

    Attributes:
      kind: class of its options.
      options: reads the options of a directory.
      params: reads the parameters of a directory.
      ends: the tokens at the start and at the end of a text; "" for no start.
      pad: the token that fills up, where the tokenizer's config names none.
    """

    kind: type[TextOptions] | type[BertOptions] | type[T5Options]
    options: Callable[[epath.Path], Options]
    params: Callable[[epath.Path], Tree]
    ends: tuple[str, str]
    pad: str


# By model_type in config.json.
FAMILIES = {
    "bert": Family(
        BertOptions,
        bert_options,
        lambda folder: read_bert(folder)[1]["params"],
        ("[CLS]", "[SEP]"),
        "[PAD]",
    ),
    "clip": Family(
        TextOptions,
        lambda folder: read_clip(folder).text_options(),
        lambda folder: {"text_model": read_clip(folder).text()[1]["params"]["text_model"]},
        ("<|startoftext|>", "<|endoftext|>"),
        "<|endoftext|>",
    ),
    "t5": Family(
        T5Options,
        t5_options,
        lambda folder: read_t5(folder)[1]["params"],
        ("", "</s>"),
        "<pad>",
    ),
}
FAMILIES["clip_text_model"] = FAMILIES["clip"]


@dataclasses.dataclass(frozen=True)
class Directory:
    """A directory with a text encoder, or one with a folder `text_encoder`.

    Attributes:
      folder: the directory with config.json and weights.
      name: its key in FAMILIES.
    """

    folder: epath.Path
    name: str

    def described(self) -> str:
        """Returns the options as `parse` reads them; raises ValueError for another network."""
        options = FAMILIES[self.name].options(self.folder)
        return json.dumps({"model_type": self.name, **dataclasses.asdict(options)})

    def params(self) -> Tree:
        """Reads the parameters; raises ValueError if the weights are damaged or of others."""
        return FAMILIES[self.name].params(self.folder)

    def digest(self) -> str:
        """Returns the SHA-256 of the weights."""
        return digest_of(find_weights(self.folder, (*WEIGHTS, *OPEN_CLIP)))


def find(directory: epath.PathLike) -> Directory:
    """Finds the text encoder of a directory.

    Raises:
      ValueError: if there is none, or its config.json is damaged or of another network.
    """
    folder = absolute(directory)
    folder = folder / FOLDER if (folder / FOLDER).exists() else folder
    content = read_config(folder, ("config.json", "open_clip_config.json"))
    name = content.get("model_type", "clip")  # The config of OpenCLIP has none.
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(
            f"{folder}/config.json has model_type {short(name)}; expected that of a text encoder, "
            f"one of {', '.join(FAMILIES)}"
        )
    return Directory(folder, name)


def parse(described: str, place: str) -> tuple[Family, Options]:
    """Returns the family and options of a Directory.described(); raises ValueError with `place`."""
    try:
        content = json.loads(described)
        name = content["model_type"]
        family = FAMILIES[name]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(
            f"{place} is {short(described)}; expected a JSON object with a model_type, one of "
            f"{', '.join(FAMILIES)}, and options of the network"
        ) from error
    return family, read_options(family.kind, content, place)


def shapes(options: Options) -> Tree:
    """Returns the shapes and dtypes of the parameters."""
    ids = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(_module(options).init, jax.random.key(0), ids)["params"]


def tokens(options: Options, params: Tree, ids: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the last tokens (b, n, hidden_size) of texts, after the final norm.

    Args:
      options: options of the network.
      params: its parameters.
      ids: int32 token numbers (b, n).
      mask: (b, n), True for tokens of the text. A text tower of CLIP does not read it, because no
        token attends to later ones: tokens of the padding are those that Stable Diffusion takes.
    """
    if not isinstance(options, TextOptions):
        return _module(options).apply({"params": params}, ids, mask)
    return _module(options).apply({"params": params}, ids).last


def _module(options: Options) -> Any:
    if isinstance(options, TextOptions):
        return ClipText(options, projected=False)
    return T5(options) if isinstance(options, T5Options) else Bert(options)
