"""Small datasets in memory."""

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
      train: what networks and reference statistics see.
      test: what they never see.
      num_classes: a network is given labels 0 .. num_classes - 1; 0 for one without labels.
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
        """(h, w, c) of one image."""
        return self.train.x.shape[1:]

    def images(self, split: str, num: int | None = None) -> Source:
        """See Dataset.images; which ones are chosen does not depend on the run."""
        source = {"train": self.train, "test": self.test}[split]
        if num is None or num >= len(source.label):
            return source
        order = np.sort(_permutation(0, 0, len(source.label))[:num])
        return Source(source.x[order], source.label[order])

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """See Dataset.batches."""
        return (self.batch(seed, step, size, part) for step in itertools.count(start))

    def batch(self, seed: int, step: int, size: int, part: tuple[int, int] = (0, 1)) -> Rows:
        """Batch number `step`, in an order that the seed decides; see Dataset.batches."""
        index, n = index_of(step, size, part), len(self.train.label)
        epoch, offset = np.divmod(index, n)
        order = [_permutation(seed, int(e), n)[o] for e, o in zip(epoch, offset, strict=True)]
        return Rows(index, self.train.x[order], self.conditions(self.train.label[order]))


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of n examples in an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(n)
