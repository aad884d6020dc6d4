"""Prompts without images, for data-free methods."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np

from distill_jax.data.base import Dataset, Rows, Source, Summary, count_of, index_of
from distill_jax.data.texts import KEYS, Texts, decoded, parsed, texts_in
from distill_jax.diffusion.spec import DataSpec, caption_data
from distill_jax.runtime.files import absolute, read_bytes
from distill_jax.runtime.options import whole
from distill_jax.runtime.text import reason

MAX_FILE = 2**28  # Bytes of a file with prompts.


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
    """A dataset of prompts without images; see Dataset.

    Attributes:
      spec: spec of the images that belong to them.
      prompts: the prompts, which are drawn uniformly from (seed, step).
      passed: see Summary.
    """

    spec: DataSpec
    prompts: tuple[str, ...]
    passed: tuple[str, ...] = ()

    num_labels = 0
    has_images = False

    @property
    def null(self) -> dict[str, np.ndarray]:
        """The empty prompt."""
        return {"caption": as_array([""])}

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """Yields batches of prompts; x is None."""
        known = as_array(self.prompts)
        for step in itertools.count(start):
            index = index_of(step, size, part)
            drawn = np.random.default_rng((seed, step)).integers(len(known), size=size)
            yield Rows(index, None, {"caption": known[drawn[index - step * size]]})

    def without_images(self) -> "Prompts":
        """Returns itself."""
        return self

    @functools.cached_property
    def summary(self) -> Summary:
        """See Summary; the fingerprint is of the prompts and their order."""
        digest = hashlib.sha256("\0".join(self.prompts).encode()).hexdigest()[:16]
        captions = count_of(self.prompts)
        return Summary(passed=self.passed, fingerprint=digest, captions=captions)

    def captions(self, split: str, num: int | None = None) -> list[str]:
        """Returns a fixed sample of the prompts, the same for every split."""
        order = np.sort(np.random.default_rng(0).permutation(len(self.prompts))[:num])
        return [self.prompts[i] for i in order]

    def images(self, split: str, num: int | None = None) -> Source:
        """Raises ValueError, because the dataset has no images."""
        raise ValueError(
            "the data have prompts only, and no images to fit to or to compare with; name finished "
            "parts and a finished teacher, and measure with a config whose data have images"
        )


def prompts(
    path: str,
    size: Annotated[int, whole(1, high=8192)],
    channels: Annotated[int, whole(1, high=1024)] = 3,
) -> Prompts:
    """Reads the prompts of a file, for methods that train without images; see prompts_in.

    A prompt that is there several times is drawn as often.

    Args:
      path: path of the file.
      size: side in pixels of the square images that the teacher draws.
      channels: channels of these images.

    Raises:
      ValueError: as prompts_in.
    """
    found, empty = prompts_in(path)
    passed = (f"{empty:,} lines without a prompt",) if empty else ()
    return Prompts(caption_data((size, size, channels)), tuple(found), passed)


def as_array(texts: Sequence[str]) -> np.ndarray:
    """Returns texts as an array of objects (n,), which is indexed like other conditions."""
    return np.array([*texts], dtype=object)


def read_prompts(path: str, num: int) -> list[str]:
    """Returns `num` prompts from a file, in turn; see prompts_in.

    Raises:
      ValueError: as prompts_in.
    """
    return in_turn(prompts_in(path)[0], num)


def in_turn(texts: Sequence[str], num: int) -> list[str]:
    """Returns `num` of the texts, again from the first after the last."""
    return list(itertools.islice(itertools.cycle(texts), num))


def prompts_in(path: str) -> tuple[list[str], int]:
    """Returns the prompts in a file, and how many lines without one are passed over.

    A .jsonl file has a JSON object in each line, whose prompts are texts_in it; in any other file
    each line is a prompt.

    Raises:
      ValueError: for a file that cannot be read, is larger than MAX_FILE or has no prompt.
    """
    try:
        text = decoded(read_bytes(absolute(path), MAX_FILE), path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read as prompts: {reason(error)}") from error
    lines = text.removesuffix("\n").split("\n")
    if path.lower().endswith(".jsonl"):
        found = [_prompts_of(line, f"{path}, line {i},") for i, line in enumerate(lines, 1)]
    else:
        found = [(line.strip(),) if line.strip() else () for line in lines]
    prompts = [prompt for texts in found for prompt in texts]
    if not prompts:
        raise ValueError(
            f"{path} has no prompt; expected one in each line, or in a .jsonl an object with one "
            f"of {', '.join(KEYS)}"
        )
    return prompts, sum(not texts for texts in found)


def _prompts_of(line: str, place: str) -> Texts:
    """Returns the prompts in a line of a .jsonl file."""
    if not line.strip():
        return ()
    texts = texts_in(parsed(line, place), place)
    if texts is None:
        raise ValueError(f"{place} has none of {', '.join(KEYS)}: {line:.80}")
    return texts


def captions_of(dataset: Dataset, split: str, num: int | None = None) -> list[str]:
    """Returns the captions of `dataset.images(split, num)`.

    Raises:
      ValueError: for a dataset without captions.
    """
    if not hasattr(dataset, "captions"):
        raise ValueError("the data have no captions: they lack a method captions(split, num)")
    return [*dataset.captions(split, num)]
