"""Prompts without images, for data-free methods."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from distill_jax.data.base import Dataset, Rows, Source, index_of
from distill_jax.diffusion.spec import DataSpec
from distill_jax.runtime.files import absolute, read_bytes
from distill_jax.runtime.text import reason

MAX_FILE = 2**28  # Bytes of a file with prompts.


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
    """A dataset of prompts without images; see Dataset.

    Attributes:
      spec: spec of the images that belong to them.
      prompts: the prompts, which are drawn uniformly from (seed, step).
    """

    spec: DataSpec
    prompts: tuple[str, ...]

    num_labels = 0

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

    def images(self, split: str, num: int | None = None) -> Source:
        """Raises ValueError, because the dataset has no images."""
        raise ValueError("this dataset has prompts only, and no images")


def as_array(texts: Sequence[str]) -> np.ndarray:
    """Returns texts as an array of objects (n,), which is indexed like other conditions."""
    return np.array([*texts], dtype=object)


def read_prompts(path: str, num: int) -> list[str]:
    """Returns `num` prompts from a text file with one in each line, in turn.

    Empty lines are passed over.

    Raises:
      ValueError: for a file that cannot be read, is larger than MAX_FILE or has no prompt.
    """
    try:
        text = read_bytes(absolute(path), MAX_FILE).decode()
    except (OSError, ValueError) as error:  # UnicodeDecodeError is a ValueError.
        raise ValueError(f"{path} cannot be read as prompts: {reason(error)}") from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ValueError(f"{path} has no prompt; expected one in each line")
    return list(itertools.islice(itertools.cycle(lines), num))


def captions_of(dataset: Dataset, split: str, num: int | None = None) -> list[str]:
    """Returns the captions of `dataset.images(split, num)`.

    Raises:
      ValueError: for a dataset without captions.
    """
    if not hasattr(dataset, "captions"):
        raise ValueError("the data have no captions: they lack a method captions(split, num)")
    return [*dataset.captions(split, num)]
