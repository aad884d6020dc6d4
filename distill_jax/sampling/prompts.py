"""Prompts: the conditioner of texts, and the text encoders that it may have."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from distill_jax.diffusion.spec import DataSpec, Leaf, has_captions
from distill_jax.models import text_encoders
from distill_jax.models.clip import TextOptions
from distill_jax.runtime.options import MAX_BLOCKS, MAX_WIDTH, number, option, whole
from distill_jax.runtime.registry import build
from distill_jax.sampling.tokenizer import (
    Tokenizer,
    read_tokenizer,
    tokenizer_of,
    word_tokenizer,
)
from distill_jax.storage import checkpoint
from distill_jax.typing import Tree

BATCH = 64  # Prompts per call of the encoder.
MEMORY = 2**28  # Bytes of encoded prompts that are kept.
MAX_NOTES = 10  # Warnings of a conditioner, which may encode millions of prompts.


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
      options: options of the text encoder.
      params: parameters of the text encoder.
      empty: prompt that stands for no condition: the empty one, or a negative prompt.
      place: puts the ids and the mask of a batch of BATCH prompts on the encoder's devices.
    """

    tokenizer: Tokenizer
    options: text_encoders.Options
    params: Tree
    empty: str = ""
    place: Callable[[np.ndarray], Any] = np.asarray
    _known: dict[str, Encoded | None] = dataclasses.field(default_factory=dict, repr=False)
    _noted: list[str] = dataclasses.field(default_factory=list, repr=False)

    @property
    def null(self) -> dict[str, Any]:
        """The condition of the empty prompt, leaves (1, ...)."""
        return self([self.empty], 1)

    def __call__(self, requests: Any, num: int) -> dict[str, Any]:
        """Returns the conditions of one prompt for all images, or one per image; see Conditioner.

        A prompt that is cut, or has unknown words, causes a warning; the first MAX_NOTES do.

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

    def notes(self, prompts: Sequence[str]) -> list[str]:
        """Returns a note for each prompt that is cut or has unknown words, instead of warnings."""
        self._noted.extend([""] * MAX_NOTES)
        return [notes[0] for prompt in prompts if (notes := self.tokenizer([prompt])[1])]

    def _encoded(self, prompts: Sequence[str]) -> dict[str, Encoded]:
        """Encodes at most BATCH prompts in one batch."""
        ids, notes = self.tokenizer([*prompts] + [""] * (BATCH - len(prompts)))
        for note in notes[: MAX_NOTES - len(self._noted)]:
            warnings.warn(note, stacklevel=4)
        if len(self._noted) < MAX_NOTES <= len(self._noted) + len(notes):
            warnings.warn("further prompts that are cut or unknown are not named", stacklevel=4)
        self._noted.extend(notes[: MAX_NOTES - len(self._noted)])
        mask = mask_of(ids, self.tokenizer.end)
        text = np.asarray(_states(self.options, self.params, *map(self.place, (ids, mask))))
        return {prompt: Encoded(text[i], mask[i]) for i, prompt in enumerate(prompts)}


def mask_of(ids: np.ndarray, end: int) -> np.ndarray:
    """Returns which tokens come before the first end token, or are it; (n, length)."""
    ends = ids == end
    return np.cumsum(ends, axis=1) - ends == 0


_states = functools.partial(jax.jit, static_argnums=0)(text_encoders.tokens)


def _encoded_spec(data: DataSpec, length: int, width: int) -> DataSpec:
    """Returns the spec with encoded prompts instead of captions; see WordEncoder.conditions."""
    if not has_captions(data):
        raise ValueError(
            "config.conditioner encodes captions, and the data have none; leave it out"
        )
    text, mask = Leaf((length, width)), Leaf((length,), "bool")
    return data._replace(cond=(("text", text), ("text_mask", mask)))


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
        return _encoded_spec(data, self.length, self.width)

    def described(self) -> "WordEncoder":
        """Returns itself: its options say everything."""
        return self

    def vocabulary(self, content: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the words in the manifest of a finished one; raises ValueError for damage."""
        words = tuple(content["words"])
        self.options(words)
        return words

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
        return text_encoders.shapes(self.options(words))

    def load(self, params: Tree, words: Sequence[str]) -> Text:
        """Returns the conditioner with these parameters."""
        return Text(word_tokenizer(words, self.length), self.options(words), params)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A published text encoder, read from its directory and kept in the run's conditioner/.

    Attributes:
      path: directory with config.json, weights and a tokenizer, as Hugging Face publishes it, or
        that of a whole pipeline with folders text_encoder and tokenizer; "" for one that was read
        before.
      length: number of tokens of every prompt, with start and end.
      model: JSON of model_type, a key of text_encoders.FAMILIES, and of options of the network with
        the names of config.json; "" reads them from the directory.
      weights: SHA-256 of the file of weights that was read before.
    """

    path: str = ""
    length: int = option(whole(3, high=4096), 77)
    model: str = ""
    weights: str = ""

    @functools.cached_property
    def _directory(self) -> text_encoders.Directory:
        if not self.path:
            raise ValueError("conditioner.path is empty; expected the directory of a text encoder")
        return text_encoders.find(self.path)

    @functools.cached_property
    def _network(self) -> tuple[text_encoders.Family, text_encoders.Options]:
        known = self.model and not self.path
        described = self.model if known else self._directory.described()
        family, options = text_encoders.parse(described, "conditioner.model")
        if self.length > options.max_position_embeddings:
            raise ValueError(
                f"conditioner.length is {self.length}; this network takes at most "
                f"{options.max_position_embeddings} tokens"
            )
        return family, options

    def conditions(self, data: DataSpec) -> DataSpec:
        """Returns the spec with encoded prompts; see WordEncoder.conditions, and `described`."""
        return _encoded_spec(data, self.length, self._network[1].hidden_size)

    def described(self) -> "Pretrained":
        """Returns the encoder with the options and checksum of its files, and without their path.

        Raises:
          ValueError: if the files are missing, damaged or of another network.
        """
        if not self.path:
            return self
        model = self._directory.described()
        return Pretrained("", self.length, model, self._directory.digest())

    def read(self) -> tuple[Tree, tuple[str, str]]:
        """Reads the parameters and the vocabulary; raises as `described`."""
        family, options = self._network
        folder = self._directory.folder
        beside = (folder.parent / "tokenizer").exists() and folder.name == text_encoders.FOLDER
        place = folder.parent if beside else folder
        found = read_tokenizer(place, self.length, family.ends, family.pad)
        if found.largest >= options.vocab_size:
            raise ValueError(
                f"the tokenizer in {place} has the number {found.largest}, and the network knows "
                f"{options.vocab_size}: take the one that was published with it"
            )
        return self._directory.params(), (found.text, found.pad_token)

    def vocabulary(self, content: Mapping[str, Any]) -> tuple[str, str]:
        """Returns the tokenizer and its pad token in a manifest; raises ValueError for damage."""
        text, pad = content["tokenizer"]
        if not isinstance(text, str) or not isinstance(pad, str):
            raise ValueError("its tokenizer is no text")
        if self._tokenizer((text, pad)).largest >= self._network[1].vocab_size:
            raise ValueError("its tokenizer has numbers that the network does not know")
        return text, pad

    def _tokenizer(self, vocabulary: tuple[str, ...]) -> Tokenizer:
        text, pad = vocabulary
        return tokenizer_of(text, self.length, self._network[0].ends, pad)

    def shapes(self, vocabulary: tuple[str, ...]) -> Tree:
        """Returns the shapes and dtypes of the parameters."""
        return text_encoders.shapes(self._network[1])

    def load(self, params: Tree, vocabulary: tuple[str, ...]) -> Text:
        """Returns the conditioner with these parameters."""
        return Text(self._tokenizer(vocabulary), self._network[1], params)


# Text encoders that `config.conditioner` may name; a run fits or reads its own at its start.
CONDITIONERS = {"words": WordEncoder, "pretrained": Pretrained}


def read_conditioner(final: epath.Path) -> tuple[WordEncoder | Pretrained, tuple[str, ...]]:
    """Reads the kind of a finished conditioner, and its vocabulary.

    Raises:
      FileNotFoundError: if there is no manifest.
      ValueError: if the manifest is damaged, or not that of a conditioner.
    """
    content = checkpoint.read_manifest(final)
    try:
        kind = build(CONDITIONERS, "conditioner", content["conditioner"])
        vocabulary = kind.vocabulary(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{final / 'manifest.json'} does not describe a conditioner: {error}"
        ) from error
    return kind, vocabulary


def load_conditioner(final: epath.Path) -> Text:
    """Loads the conditioner in a final/; raises as read_conditioner, and for damaged parameters."""
    kind, vocabulary = read_conditioner(final)
    return kind.load(checkpoint.load_params(final, kind.shapes(vocabulary)), vocabulary)
