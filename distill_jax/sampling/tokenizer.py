"""Tokenizers: from prompts to token numbers, those of published networks or of whole words.

The former read the files that are published beside the network: CLIP's vocab.json and merges.txt,
or tokenizer.json, and tokenizer_config.json for the token that fills up.
"""

import dataclasses
import html
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers
from etils import epath

from distill_jax.runtime.files import absolute, read_bytes, read_json
from distill_jax.runtime.text import reason, short

START, END = "<|startoftext|>", "<|endoftext|>"
UNKNOWN = "<|unknown|>"
MAX_FILE = 2**24  # Bytes of a file; CLIP's largest has 2.2 MB.
MAX_PROMPT = 100_000  # Characters of a prompt; the rest is cut like any tokens beyond the length.
# Words, digits and runs of other characters; Radford et al. (2021), released simple_tokenizer.py.
PATTERN = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of texts that have an end token, and mostly a start token.

    Attributes:
      length: number of tokens of every prompt, with start and end.
      start: number of the start token; None without one.
      end: number of the end token.
      pad: number of the token that fills up.
      unknown: number of the token of unknown words; None if every text has tokens.
    """

    length: int
    start: int | None
    end: int
    pad: int
    _encoder: Any = dataclasses.field(repr=False, compare=False)
    unknown: int | None = None

    @property
    def size(self) -> int:
        """The number of known tokens."""
        return int(self._encoder.get_vocab_size())

    @property
    def text(self) -> str:
        """The tokenizer as text, which tokenizer_of reads."""
        return str(self._encoder.to_str())

    @property
    def pad_token(self) -> str:
        """The token that fills up."""
        return str(self._encoder.id_to_token(self.pad))

    @property
    def largest(self) -> int:
        """The largest number of a token."""
        return max(self._encoder.get_vocab().values())

    def __call__(
        self, prompts: Sequence[str], prefix: str = "", unescape: bool = False
    ) -> tuple[np.ndarray, list[str]]:
        """Returns token numbers, int32 (n, length), and a note for each prompt that was cut.

        Args:
          prompts: the prompts.
          prefix: text whose tokens come before those of every prompt.
          unescape: whether to replace HTML entities first, as OpenAI's and OpenCLIP's code does.
        """
        before, notes = self._ids(prefix), []
        first = [] if self.start is None else [self.start]
        ids = np.full((len(prompts), self.length), self.pad, np.int32)
        for row, prompt in zip(ids, prompts, strict=True):
            text = html.unescape(html.unescape(prompt)) if unescape else prompt
            found = [*before, *self._ids(text)]
            room = self.length - len(first) - 1
            if len(found) > room or len(text) > MAX_PROMPT:
                lost = self._encoder.decode(found[room:], skip_special_tokens=False)
                notes.append(
                    f"the prompt {short(prompt)} has {len(first) + len(found) + 1} tokens, and "
                    f"the network takes {self.length}: {short(_plain(lost))} is cut"
                )
            if self.unknown in found:
                known = self._encoder.get_vocab()
                lost_words = [word for word in text.lower().split() if word not in known]
                notes.append(
                    f"the prompt {short(prompt)} has words that are in no training caption: "
                    f"{short(' '.join(lost_words))}"
                )
            found = [*first, *found[:room], self.end]
            row[: len(found)] = found
        return ids, notes

    def _ids(self, text: str) -> list[int]:
        """Returns the numbers of the tokens of a text, without start and end."""
        # Half of a surrogate pair has no UTF-8.
        text = text[:MAX_PROMPT].encode("utf-8", "replace").decode()
        return self._encoder.encode(text, add_special_tokens=False).ids


def _plain(text: str) -> str:
    """Returns a decoded text without the marks at the ends of words, and inside of the first."""
    return text.replace("</w>", " ").strip().removeprefix("##")


def read_tokenizer(
    directory: epath.PathLike,
    length: int = 77,
    ends: tuple[str, str] = (START, END),
    pad: str = END,
) -> Tokenizer:
    """Reads the tokenizer of a directory, or of its folder `tokenizer`.

    Args:
      directory: the directory.
      length: number of tokens of every prompt.
      ends: the tokens at the start and at the end of a prompt, CLIP's or those of others.
      pad: the token that fills up, unless tokenizer_config.json names another one.

    Raises:
      ValueError: if the files are missing, damaged, or of another tokenizer.
    """
    folder = absolute(directory)
    folder = folder / "tokenizer" if (folder / "tokenizer").exists() else folder
    try:
        if (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
            encoder = _of_vocabulary(folder)
        elif (folder / "tokenizer.json").exists():
            encoder = _of_json(read_bytes(folder / "tokenizer.json", MAX_FILE).decode())
        else:
            raise FileNotFoundError(_missing(folder))
        pad = _pad_token(folder) or pad
        if encoder.token_to_id(pad) is not None:  # A pad "!" is also found within a text.
            encoder.add_special_tokens([pad])
    except OSError as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # The library raises Exception itself.
        raise ValueError(
            f"the tokenizer in {folder} cannot be read ({reason(error)}); download it again"
        ) from error
    return _tokenizer(encoder, length, ends, pad, f"the tokenizer in {folder}")


def _missing(folder: epath.Path) -> str:
    """Returns the message for a directory without the files of a tokenizer."""
    if (folder / "spiece.model").exists():
        return (
            f"{folder} has spiece.model and no tokenizer.json, which is read: transformers writes "
            "it, AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        )
    return (
        f"{folder} has no tokenizer; expected CLIP's vocab.json and merges.txt, or "
        "tokenizer.json, which are published beside the weights"
    )


def tokenizer_of(text: str, length: int, ends: tuple[str, str], pad: str) -> Tokenizer:
    """Returns the tokenizer of a Tokenizer.text; the other arguments are as in read_tokenizer.

    Raises:
      ValueError: if the text is damaged, or of another tokenizer.
    """
    try:
        if len(text) > MAX_FILE:
            raise ValueError(f"it has {len(text):,} characters")
        encoder = _of_json(text)
    except Exception as error:  # The library raises Exception itself.
        raise ValueError(f"the tokenizer cannot be read ({reason(error)})") from error
    return _tokenizer(encoder, length, ends, pad, "the tokenizer")


def _of_json(content: str) -> Any:
    """Returns the library's tokenizer, which neither cuts nor fills up."""
    encoder = tokenizers.Tokenizer.from_str(content)
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def _tokenizer(encoder: Any, length: int, ends: tuple[str, str], pad: str, place: str) -> Tokenizer:
    """Returns the tokenizer of the library's; raises ValueError if it lacks a token."""
    start, end, fills = (encoder.token_to_id(token) for token in (*ends, pad))
    if end is None or (start is None and ends[0]):
        whose = "CLIP's" if ends == (START, END) else "that of this network"
        raise ValueError(f"{place} has no {ends[0]} or {ends[1]}: it is not {whose}")
    if fills is None:
        raise ValueError(f"{place} has no token {short(pad)}, its pad_token")
    return Tokenizer(length, start, end, fills, encoder)


def word_tokenizer(words: Sequence[str], length: int) -> Tokenizer:
    """Returns the tokenizer of whole words, in lower case, with the tokens of CLIP's.

    Args:
      words: the known words; their tokens follow those of start, end and unknown words.
      length: number of tokens of every prompt, with start and end.
    """
    vocabulary = {word: i for i, word in enumerate((START, END, UNKNOWN, *words))}
    encoder = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token=UNKNOWN))
    encoder.normalizer = tokenizers.normalizers.Lowercase()
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return Tokenizer(length, 0, 1, 1, encoder, 2)


def _of_vocabulary(folder: epath.Path) -> Any:
    """Returns the tokenizer of vocab.json and merges.txt."""
    vocabulary = read_json(folder / "vocab.json", MAX_FILE)
    lines = read_bytes(folder / "merges.txt", MAX_FILE).decode().splitlines()
    if not all(type(number) is int and 0 <= number < 2**31 for number in vocabulary.values()):
        raise ValueError("a token of vocab.json has no number")
    if not {START, END} <= set(vocabulary):  # The library would add them under other numbers.
        raise ValueError(f"vocab.json has no {START} or {END}: it is not CLIP's")
    parts = [line.split() for line in lines if line and not line.startswith("#version")]
    if not all(len(pair) == 2 for pair in parts):
        raise ValueError("a line of merges.txt has not two parts")
    merges = [(first, second) for first, second in parts]
    encoder = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocabulary, merges, unk_token=END, end_of_word_suffix="</w>", fuse_unk=False
        )
    )
    spaces = tokenizers.normalizers.Replace(tokenizers.Regex(r"\s+"), " ")
    encoder.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFC(), spaces, tokenizers.normalizers.Lowercase()]
    )
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(PATTERN), "removed", invert=True)
    bytes_ = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, bytes_])
    encoder.decoder = tokenizers.decoders.ByteLevel()
    encoder.add_special_tokens([START, END])
    return encoder


def _pad_token(folder: epath.Path) -> str:
    """Returns the token that fills up, by tokenizer_config.json; "" if no file names one."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if not (folder / name).exists():
            continue
        # Not read_json: the file's model_max_length is often 10^30.
        found = json.loads(read_bytes(folder / name, MAX_FILE), parse_int=float).get("pad_token")
        found = found["content"] if isinstance(found, dict) else found
        if not isinstance(found, (str, type(None))):
            raise ValueError(f"the pad_token is {short(found)}")
        if found:
            return found
    return ""
