"""Small datasets that are kept in memory."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import numpy as np

from distill_jax.data.base import LabelledImages, Rows, Source, index_of


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays(LabelledImages):
    """A dataset whose images are all in memory.

    Attributes:
      train: examples for training and reference statistics.
      test: examples of the test split.
      num_classes: number of classes that condition the network; 0 for no labels.
      num_labels: see Dataset.
      bounded: whether pixels lie in [-1, 1].
    """

    train: Source
    test: Source
    num_classes: int
    num_labels: int
    bounded: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (h, w, c) of one image."""
        return self.train.x.shape[1:]

    def images(self, split: str, num: int | None = None) -> Source:
        """Returns a fixed sample of a split, the same in every run; see Dataset.images."""
        source = {"train": self.train, "test": self.test}[split]
        if num is None or num >= len(source.label):
            return source
        order = np.sort(_permutation(0, 0, len(source.label))[:num])
        return Source(source.x[order], source.label[order])

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """Yields batches from number `start` on; see Dataset.batches."""
        return (self.batch(seed, step, size, part) for step in itertools.count(start))

    def batch(self, seed: int, step: int, size: int, part: tuple[int, int] = (0, 1)) -> Rows:
        """Returns batch number `step` in the order given by the seed; see Dataset.batches."""
        index, n = index_of(step, size, part), len(self.train.label)
        epoch, offset = np.divmod(index, n)
        order = [_permutation(seed, int(e), n)[o] for e, o in zip(epoch, offset, strict=True)]
        return Rows(index, self.train.x[order], self.conditions(self.train.label[order]))


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """Returns the order of n examples in an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(n)
