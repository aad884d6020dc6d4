"""Prompts: the conditioner of texts, and the options of a small text encoder."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.diffusion.spec import DataSpec, Leaf, has_captions
from distill_jax.models.clip import ClipText, TextOptions
from distill_jax.runtime.options import MAX_BLOCKS, MAX_WIDTH, number, option, whole
from distill_jax.runtime.registry import build
from distill_jax.sampling.tokenizer import Tokenizer, word_tokenizer
from distill_jax.storage import checkpoint
from distill_jax.typing import Tree

BATCH = 64  # Prompts per call of the encoder.
MEMORY = 2**28  # Bytes of encoded prompts that are kept.


class Encoded(NamedTuple):
    """An encoded prompt: tokens (length, width), and which of them belong to the text."""

    text: np.ndarray
    mask: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """The conditioner of prompts: a tokenizer and a frozen text encoder.

    Its conditions are "text", the encoder's last tokens (length, width), and "text_mask", True for
    tokens of the prompt with its start and end. The null condition is the empty prompt.

    Attributes:
      tokenizer: the tokenizer.
      options: options of the text tower.
      params: parameters of the text tower.
      empty: prompt that stands for no condition: the empty one, or a negative prompt.
      place: puts the ids and the mask of a batch of BATCH prompts on the encoder's devices.
    """

    tokenizer: Tokenizer
    options: TextOptions
    params: Tree
    empty: str = ""
    place: Callable[[np.ndarray], Any] = np.asarray
    _known: dict[str, Encoded | None] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def null(self) -> dict[str, Any]:
        """The condition of the empty prompt, leaves (1, ...)."""
        return self([self.empty], 1)

    def __call__(self, requests: Any, num: int) -> dict[str, Any]:
        """Returns the conditions of one prompt for all images, or one per image; see Conditioner.

        A prompt that is cut, or has unknown words, causes a warning.

        Raises:
          ValueError: for anything that is not a text, or not as many as images.
        """
        given = requests if isinstance(requests, (str, Sequence, np.ndarray)) else ()
        prompts = [given] * num if isinstance(given, str) else list(given)
        if len(prompts) != num or not all(isinstance(prompt, str) for prompt in prompts):
            raise ValueError(
                f"prompt is {requests!r}; this network draws from prompts: expected a text, or "
                f"{num} of them"
            )
        # Another thread may change what is known, so this call has rows of its own.
        rows = {prompt: self._known.get(prompt) for prompt in dict.fromkeys(prompts)}
        new = [prompt for prompt, row in rows.items() if row is None]
        for start in range(0, len(new), BATCH):
            rows.update(self._encoded(new[start : start + BATCH]))
        found = [row for row in map(rows.__getitem__, prompts) if row is not None]
        if found and len(self._known) * found[0].text.nbytes > MEMORY:
            self._known.clear()
        self._known.update({prompt: rows[prompt] for prompt in new})
        return {
            "text": np.stack([row.text for row in found]),
            "text_mask": np.stack([row.mask for row in found]),
        }

    def _encoded(self, prompts: Sequence[str]) -> dict[str, Encoded]:
        """Encodes at most BATCH prompts in one batch."""
        ids, notes = self.tokenizer([*prompts] + [""] * (BATCH - len(prompts)))
        for note in notes:
            warnings.warn(note, stacklevel=4)
        mask = mask_of(ids, self.tokenizer.end)
        text = np.asarray(_states(self.options, self.params, *map(self.place, (ids, mask))))
        return {prompt: Encoded(text[i], mask[i]) for i, prompt in enumerate(prompts)}


def mask_of(ids: np.ndarray, end: int) -> np.ndarray:
    """Returns which tokens come before the first end token, or are it; (n, length)."""
    ends = ids == end
    return np.cumsum(ends, axis=1) - ends == 0


@functools.partial(jax.jit, static_argnums=0)
def _states(options: TextOptions, params: Tree, ids: jax.Array, mask: jax.Array) -> jax.Array:
    found: Any = ClipText(options, projected=False).apply({"params": params}, ids, mask)
    return found.last


@dataclasses.dataclass(frozen=True)
class WordEncoder:
    """A small text tower of CLIP over whole words, fitted to the captions of a dataset.

    It learns the mean latent of every caption, see run.text_encoder, and then it is frozen, like
    the text encoders of large models.

    Attributes:
      width: width of the tokens.
      layers: number of layers.
      heads: number of attention heads.
      length: number of tokens of every prompt, with start and end.
      updates: number of updates.
      batch: captions per update.
      learning_rate: the first learning rate; it falls linearly to 0.
    """

    width: int = option(whole(4, 4, MAX_WIDTH), 128)
    layers: int = option(whole(1, high=MAX_BLOCKS), 2)
    heads: int = option(whole(1, high=1024), 4)
    length: int = option(whole(3, high=4096), 16)
    updates: int = option(whole(1, high=10**9), 2000)
    batch: int = option(whole(1, high=10**6), 32)
    learning_rate: float = option(number(0, 1), 2e-3)

    def conditions(self, data: DataSpec) -> DataSpec:
        """Returns the spec with encoded prompts instead of captions.

        Raises:
          ValueError: if the data have no captions.
        """
        if not has_captions(data):
            raise ValueError(
                "config.conditioner encodes captions, and the data have none; leave it out"
            )
        text, mask = Leaf((self.length, self.width)), Leaf((self.length,), "bool")
        return data._replace(cond=(("text", text), ("text_mask", mask)))

    def options(self, words: Sequence[str]) -> TextOptions:
        """Returns the options of the text tower for a vocabulary."""
        tokenizer = word_tokenizer(words, self.length)
        return TextOptions(
            hidden_size=self.width,
            intermediate_size=4 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            hidden_act="gelu",
            vocab_size=tokenizer.size,
            max_position_embeddings=self.length,
            eos_token_id=tokenizer.end,
        )

    def shapes(self, words: Sequence[str]) -> Tree:
        """Returns the shapes and dtypes of the text tower's parameters."""
        module = ClipText(self.options(words), projected=False)
        ids = jnp.zeros((1, self.length), jnp.int32)
        return jax.eval_shape(module.init, jax.random.key(0), ids)["params"]

    def load(self, params: Tree, words: Sequence[str]) -> Text:
        """Returns the conditioner with these parameters."""
        return Text(word_tokenizer(words, self.length), self.options(words), params)


# Text encoders that `config.conditioner` may name; a run fits its own before the first stage.
CONDITIONERS = {"words": WordEncoder}


def read_conditioner(final: epath.Path) -> tuple[WordEncoder, tuple[str, ...]]:
    """Reads the kind of a finished conditioner, and its words.

    Raises:
      FileNotFoundError: if there is no manifest.
      ValueError: if the manifest is damaged, or not that of a conditioner.
    """
    content = checkpoint.read_manifest(final)
    try:
        kind = build(CONDITIONERS, "conditioner", content["conditioner"])
        words = tuple(content["words"])
        kind.options(words)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{final / 'manifest.json'} does not describe a conditioner: {error}"
        ) from error
    return kind, words


def load_conditioner(final: epath.Path) -> Text:
    """Loads the conditioner in a final/; raises as read_conditioner, and for damaged parameters."""
    kind, words = read_conditioner(final)
    return kind.load(checkpoint.load_params(final, kind.shapes(words)), words)
