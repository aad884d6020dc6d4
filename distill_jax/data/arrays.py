"""Small datasets that are kept in memory."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator

import numpy as np

from distill_jax.data.base import LabelledImages, Rows, Source, Summary, check_labels, index_of


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays(LabelledImages):
    """A dataset whose images are all in memory.

    Attributes:
      train: examples for training and reference statistics.
      test: examples of the test split.
      num_classes: number of classes that condition the network; 0 for no labels.
      num_labels: see Dataset.
      bounded: whether pixels lie in [-1, 1].

    Raises:
      ValueError: for labels that are not in 0 .. num_labels - 1, or not one for each image.
    """

    train: Source
    test: Source
    num_classes: int
    num_labels: int
    bounded: bool = True

    def __post_init__(self) -> None:
        for name, split in (("train", self.train), ("test", self.test)):
            if split.label.shape != split.x.shape[:1]:
                raise ValueError(
                    f"split {name!r} has labels of shape {split.label.shape} for images of shape "
                    f"{split.x.shape}; expected one for each image"
                )
            check_labels(split.label, self.num_labels, f"split {name!r}")

    @property
    def summary(self) -> Summary:
        """See Summary; images of floats count with their shape, uint8 with their values."""
        digest, counts = hashlib.sha256(), {}
        for name, (x, label) in (("train", self.train), ("test", self.test)):
            counts[name] = len(label)
            digest.update(f"{x.shape} {x.dtype}".encode() + label.astype("<i4").tobytes())
            if x.dtype == np.uint8:
                digest.update(np.ascontiguousarray(x).data)
        return Summary(counts, fingerprint=digest.hexdigest()[:16])

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
