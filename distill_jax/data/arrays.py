"""Small datasets in memory: batches as a function of (seed, step)."""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np


class Source(NamedTuple):
    """Images in [-1, 1], float32 (n, h, w, c), and labels, int32 (n,)."""

    x: np.ndarray
    label: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images with a fixed train and held-out split.

    Attributes:
      train: what networks and reference statistics see.
      held_out: what they never see.
      num_classes: labels are 0 .. num_classes - 1.
    """

    train: Source
    held_out: Source
    num_classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        """(h, w, c) of one image."""
        return self.train.x.shape[1:]

    def batch(self, seed: int, step: int, size: int, part: tuple[int, int] = (0, 1)) -> Source:
        """Batch number `step` of `size` training images, in an order that the seed decides.

        Each epoch is a new permutation and no image is left out. Nothing is remembered between
        calls, so a run may resume at any step, on any number of processes.

        Args:
          seed: from 0.
          step: from 0.
          size: of the whole batch.
          part: (i, n) gives the i-th of n equal consecutive parts, for process i of n.
        """
        index, count = part
        n = len(self.train.label)
        start = step * size + index * size // count
        epoch, offset = np.divmod(np.arange(start, start + size // count), n)
        order = [_permutation(seed, int(e), n)[o] for e, o in zip(epoch, offset, strict=True)]
        return Source(self.train.x[order], self.train.label[order])


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(n)
