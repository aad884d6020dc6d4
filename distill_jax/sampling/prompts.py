"""Prompts: the conditioner of texts, and the text encoders that it may have."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.diffusion.spec import DataSpec, has_captions
from distill_jax.models import text_compositions, text_encoders, text_files
from distill_jax.models.clip import TextOptions
from distill_jax.models.text_compositions import LENGTH, Joint
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

BATCH, FEW = 64, 8  # Prompts per call of the encoder, and of one with more than MANY tokens.
MANY = 128
MEMORY = 2**28  # Bytes of encoded prompts that are kept.
MAX_NOTES = 10  # Warnings of a conditioner, which may encode millions of prompts.


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
    """The conditioner of prompts: tokenizers and frozen text encoders, which are one.

    Its conditions are "text", tokens (length, width), "text_mask", True for tokens of the prompt
    with its start and end, and of some encoders "pooled", a vector of the whole prompt. The null
    condition is the empty prompt, for which `encoder.zeros` takes zeros.

    Attributes:
      tokenizers: the tokenizer of each encoder.
      encoder: options of the text encoders.
      params: their parameters.
      empty: prompt that stands for no condition: the empty one, or a negative prompt.
      place: puts the ids and masks of a batch of `batch` prompts on the encoder's devices.
    """

    tokenizers: tuple[Tokenizer, ...]
    encoder: Joint
    params: Tree
    empty: str = ""
    place: Callable[[Any], Any] = jax.device_put
    _known: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict, repr=False)
    _noted: list[str] = dataclasses.field(default_factory=list, repr=False)

    @property
    def batch(self) -> int:
        """The number of prompts per call of the encoder."""
        return BATCH if max(self.encoder.lengths) <= MANY else FEW

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
        for start in range(0, len(new), self.batch):
            rows.update(self._encoded(new[start : start + self.batch]))
        found = [row for row in map(rows.__getitem__, prompts) if row is not None]
        if found and len(self._known) * found[0]["text"].nbytes > MEMORY:
            self._known.clear()
        self._known.update({prompt: row for prompt, row in rows.items() if row is not None})
        names = self.encoder.leaves
        return {name: np.stack([row[name] for row in found]) for name in names}

    def notes(self, prompts: Sequence[str]) -> list[str]:
        """Returns a note for each prompt that is cut or has unknown words, instead of warnings."""
        self._noted.extend([""] * MAX_NOTES)
        found = (self._numbers([prompt])[1] for prompt in prompts)
        return ["; ".join(notes) for notes in found if notes]

    def _numbers(self, prompts: Sequence[str]) -> tuple[list[np.ndarray], list[str]]:
        """Returns the token numbers for each encoder, and the notes of the tokenizers, once."""
        made = [tokenizer(prompts) for tokenizer in self.tokenizers]
        notes = dict.fromkeys(note for _, notes in made for note in notes)
        return [ids for ids, _ in made], list(notes)

    def _encoded(self, prompts: Sequence[str]) -> dict[str, dict[str, np.ndarray]]:
        """Encodes at most `batch` prompts in one batch."""
        ids, notes = self._numbers([*prompts] + [""] * (self.batch - len(prompts)))
        for note in notes[: MAX_NOTES - len(self._noted)]:
            warnings.warn(note, stacklevel=4)
        if len(self._noted) < MAX_NOTES <= len(self._noted) + len(notes):
            warnings.warn("further prompts that are cut or unknown are not named", stacklevel=4)
        self._noted.extend(notes[: MAX_NOTES - len(self._noted)])
        ends = [tokenizer.end for tokenizer in self.tokenizers]
        masks = list(map(mask_of, ids, ends))
        given = map(self.place, (ids, masks))
        made = text_compositions.conditions(self.encoder, self.params, *given)
        found = {name: np.asarray(leaf) for name, leaf in made.items()}
        rows = {p: {name: leaf[i] for name, leaf in found.items()} for i, p in enumerate(prompts)}
        if self.encoder.zeros and "" in rows:
            zeros = {name: np.zeros_like(rows[""][name]) for name in ("text", "pooled")}
            rows[""] = {**rows[""], **zeros}
        return rows


def mask_of(ids: Any, end: int) -> Any:
    """Returns which tokens come before the first end token, or are it; (n, length)."""
    ends = ids == end
    return ends.cumsum(axis=1) - ends == 0


def _encoded_spec(data: DataSpec, encoder: Joint) -> DataSpec:
    """Returns the spec with encoded prompts instead of captions; see WordEncoder.conditions."""
    if not has_captions(data):
        raise ValueError(
            "config.conditioner encodes captions, and the data have none; leave it out"
        )
    return data._replace(cond=tuple(encoder.leaves.items()))


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
        return _encoded_spec(data, self.encoder(()))

    def described(self) -> "WordEncoder":
        """Returns itself: its options say everything."""
        return self

    def vocabulary(self, content: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns the words in the manifest of a finished one; raises ValueError for damage."""
        words = tuple(content["words"])
        self.options(words)
        return words

    def encoder(self, words: Sequence[str]) -> Joint:
        """Returns the text tower for a vocabulary, as the only text encoder."""
        return Joint("", (self.options(words),), self.length)

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
        return text_compositions.shapes(self.encoder(words))

    def load(self, params: Tree, words: Sequence[str]) -> Text:
        """Returns the conditioner with these parameters."""
        return Text((word_tokenizer(words, self.length),), self.encoder(words), params)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Published text encoders, read from their directory and kept in the run's conditioner/.

    Attributes:
      path: directory with config.json, weights and a tokenizer, as Hugging Face publishes it, or
        that of a whole pipeline: Stable Diffusion, SDXL, SD3, FLUX; "" for what was read before.
      length: number of tokens of every prompt, with start and end; beside T5 it is T5's. 0 is that
        of the pipeline: 256 for SD3, 512 for FLUX, and otherwise 77.
      model: JSON of the options, see models.text_compositions.parse; "" reads them from the
        directory.
      weights: SHA-256 of the weights that were read before.
      t5: whether to read T5 of SD3; zeros stand for its tokens otherwise, as in diffusers.
    """

    path: str = ""
    length: int = option(LENGTH, 0)
    model: str = ""
    weights: str = ""
    t5: bool = True

    @functools.cached_property
    def _directories(self) -> text_files.Directories:
        if not self.path:
            raise ValueError("conditioner.path is empty; expected the directory of a text encoder")
        return text_files.find(self.path, self.t5)

    @functools.cached_property
    def encoder(self) -> Joint:
        """The options of the text encoders; raises ValueError for those of other networks."""
        if self.model and not self.path:
            return text_compositions.parse(self.model, self.length, "conditioner.model")
        return self._directories.joint(self.length)

    def conditions(self, data: DataSpec) -> DataSpec:
        """Returns the spec with encoded prompts; see WordEncoder.conditions, and `described`."""
        return _encoded_spec(data, self.encoder)

    def described(self) -> "Pretrained":
        """Returns the encoder with the options and checksum of its files, and without their path.

        Raises:
          ValueError: if the files are missing, damaged or of another network.
        """
        if not self.path:
            return self
        known = self.encoder.length, self.encoder.described()
        return Pretrained("", *known, self._directories.digest())

    def read(self) -> tuple[Tree, tuple[str, ...]]:
        """Returns the parameters, unread, and the vocabulary; raises as `described`."""
        found: list[str] = []
        for options, length, place in self._encoders(self._directories.tokenizers()):
            family = text_encoders.family_of(options)
            tokenizer = read_tokenizer(place, length, family.ends, family.pad)
            if tokenizer.largest >= options.vocab_size:
                raise ValueError(
                    f"the tokenizer in {place} has the number {tokenizer.largest}, and the network "
                    f"knows {options.vocab_size}: take the one that was published with it"
                )
            found += tokenizer.text, tokenizer.pad_token
        return self._directories.params(), tuple(found)

    def text(self) -> Text:
        """Returns the conditioner, read from the directory; raises as `described`."""
        params, vocabulary = self.read()
        return self.load(jax.tree.map(lambda leaf: jnp.asarray(leaf.read(())), params), vocabulary)

    def _encoders(self, given: Sequence[Any]) -> Iterator[tuple[text_encoders.Options, int, Any]]:
        """Returns options, length and what is given of each encoder."""
        return zip(self.encoder.encoders, self.encoder.lengths, given, strict=True)

    def vocabulary(self, content: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns tokenizers and their pad tokens in a manifest; raises ValueError for damage."""
        found = tuple(content["tokenizer"])
        if not all(isinstance(text, str) for text in found):
            raise ValueError("its tokenizer is no text")
        for options, _, tokenizer in self._encoders(self._tokenizers(found)):
            if tokenizer.largest >= options.vocab_size:
                raise ValueError("its tokenizer has numbers that the network does not know")
        return found

    def _tokenizers(self, vocabulary: tuple[str, ...]) -> tuple[Tokenizer, ...]:
        pairs = list(zip(vocabulary[::2], vocabulary[1::2], strict=True))
        return tuple(
            tokenizer_of(text, length, text_encoders.family_of(options).ends, pad)
            for options, length, (text, pad) in self._encoders(pairs)
        )

    def shapes(self, vocabulary: tuple[str, ...]) -> Tree:
        """Returns the shapes and dtypes of the parameters."""
        return text_compositions.shapes(self.encoder)

    def load(self, params: Tree, vocabulary: tuple[str, ...]) -> Text:
        """Returns the conditioner with these parameters."""
        return Text(self._tokenizers(vocabulary), self.encoder, params)


# Text encoders that `config.conditioner` may name; a run fits or reads its own at its start.
CONDITIONERS = {"words": WordEncoder, "pretrained": Pretrained}


def read_conditioner(final: epath.Path) -> tuple[WordEncoder | Pretrained, tuple[str, ...]]:
    """Reads the kind of a finished conditioner, and its vocabulary.

    Raises:
      FileNotFoundError: if there is no manifest.
      ValueError: if the manifest is damaged, or not that of a conditioner.
    """
    return described_conditioner(checkpoint.read_manifest(final), final / "manifest.json")


def described_conditioner(
    content: Mapping[str, Any], place: epath.PathLike
) -> tuple[WordEncoder | Pretrained, tuple[str, ...]]:
    """Returns what read_conditioner does, of a manifest that was read at `place`."""
    try:
        kind = build(CONDITIONERS, "conditioner", content["conditioner"])
        vocabulary = kind.vocabulary(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{place} does not describe a conditioner: {error}") from error
    return kind, vocabulary


def load_conditioner(final: epath.Path) -> Text:
    """Loads the conditioner in a final/; raises as read_conditioner, and for damaged parameters."""
    kind, vocabulary = read_conditioner(final)
    return kind.load(checkpoint.load_params(final, kind.shapes(vocabulary)), vocabulary)
