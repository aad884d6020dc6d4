"""Published text encoders: the networks that a directory may hold, by the model_type they have."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from distill_jax.models.bert import Bert, BertOptions, bert_options, bert_state
from distill_jax.models.clip import ClipText, TextOptions, TextOutputs
from distill_jax.models.clip_files import OPEN_CLIP, read_clip
from distill_jax.models.pretrained import (
    WEIGHTS,
    digest_of,
    find_weights,
    read_config,
    read_options,
    stored_params,
)
from distill_jax.models.t5 import T5, T5Options, t5_options, t5_state
from distill_jax.runtime.files import absolute
from distill_jax.runtime.text import short
from distill_jax.storage.weights import FLOATS, Stored
from distill_jax.typing import Tree

FOLDER = "text_encoder"  # In a directory of a whole pipeline, such as Stable Diffusion's.
ADVICE = "take the config.json that was published with it"
Options = TextOptions | BertOptions | T5Options


class Family(NamedTuple):
    """A kind of text encoder.

    Attributes:
      kind: class of its options.
      options: reads the options of a directory.
      state: returns the file of weights of a directory, and its arrays by their names in PyTorch.
      ends: the tokens at the start and at the end of a text; "" for no start.
      pad: the token that fills up, where the tokenizer's config names none.
    """

    kind: type[TextOptions] | type[BertOptions] | type[T5Options]
    options: Callable[[epath.Path], Options]
    state: Callable[[epath.Path], tuple[epath.Path, Mapping[str, Stored]]]
    ends: tuple[str, str]
    pad: str


def _clip_state(folder: epath.Path) -> tuple[epath.Path, Mapping[str, Stored]]:
    found = read_clip(folder)
    return found.file, found.state


# By model_type in config.json.
FAMILIES = {
    "bert": Family(
        BertOptions,
        bert_options,
        bert_state,
        ("[CLS]", "[SEP]"),
        "[PAD]",
    ),
    "clip": Family(
        TextOptions,
        lambda folder: read_clip(folder).text_options(),
        _clip_state,
        ("<|startoftext|>", "<|endoftext|>"),
        "<|endoftext|>",
    ),
    "t5": Family(
        T5Options,
        t5_options,
        t5_state,
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

    @property
    def family(self) -> Family:
        """The kind of text encoder."""
        return FAMILIES[self.name]

    def options(self) -> Options:
        """Returns the options of the network; raises ValueError for those of another one."""
        return self.family.options(self.folder)

    def params(self, projected: bool = False) -> Tree:
        """Returns the parameters, unread, in the dtypes of the file.

        Raises:
          ValueError: if the weights are damaged, or of another network.
        """
        file, state = self.family.state(self.folder)
        found = stored_params(shapes(self.options(), projected), state, file, ADVICE)
        for leaf in jax.tree.leaves(found):
            if leaf.dtype not in FLOATS:
                raise ValueError(
                    f"{file} has weights of dtype {leaf.dtype}; expected one of "
                    f"{', '.join(map(str, FLOATS))}: take weights that are not quantised"
                )
        return found

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


def described(options: Options) -> dict[str, Any]:
    """Returns the options as plain data, which `parse` reads."""
    name = next(name for name, family in FAMILIES.items() if isinstance(options, family.kind))
    return {"model_type": name, **dataclasses.asdict(options)}


def parse(content: Any, place: str) -> Options:
    """Returns the options of `described`; raises ValueError with `place`."""
    try:
        family = FAMILIES[content["model_type"]]
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{place} is {short(content)}; expected a JSON object with a model_type, one of "
            f"{', '.join(FAMILIES)}, and options of the network"
        ) from error
    return read_options(family.kind, content, place)


def family_of(options: Options) -> Family:
    """Returns the kind of text encoder that has these options."""
    return FAMILIES[described(options)["model_type"]]


def shapes(options: Options, projected: bool = False) -> Tree:
    """Returns the shapes and dtypes of the parameters; of CLIP, maybe with its projection."""
    ids = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(_module(options, projected).init, jax.random.key(0), ids)["params"]


def outputs(
    options: Options, params: Tree, ids: jax.Array, mask: jax.Array | None
) -> jax.Array | TextOutputs:
    """Returns the last tokens (b, n, hidden_size) of texts, after the final norm; of CLIP, more.

    The network computes in float32, whatever the dtypes of its parameters are.

    Args:
      options: options of the network.
      params: its parameters.
      ids: int32 token numbers (b, n).
      mask: (b, n), True for tokens of the text; None for all. A text tower of CLIP does not read
        it, because no token attends to later ones: tokens of the padding are those that Stable
        Diffusion takes.
    """
    if isinstance(options, T5Options):  # Its layers are compiled.
        found: Any = T5(options).apply({"params": params}, ids, mask)
        return found
    return _outputs(options, params, ids, None if isinstance(options, TextOptions) else mask)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(options: Options, params: Tree, ids: jax.Array, mask: jax.Array | None) -> Any:
    wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    return _module(options, "text_projection" in params).apply({"params": wide}, ids, mask)


def _module(options: Options, projected: bool) -> Any:
    if isinstance(options, TextOptions):
        return ClipText(options, projected)
    return T5(options) if isinstance(options, T5Options) else Bert(options)
