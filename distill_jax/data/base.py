"""What a dataset is: batches as a function of (seed, step), and fixed samples to compare with."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np


class Source(NamedTuple):
    """Images (n, h, w, c), float32 in [-1, 1] or uint8 in 0 .. 255, and labels, int32 (n,)."""

    x: np.ndarray
    label: np.ndarray


@runtime_checkable
class Dataset(Protocol):
    """Labelled images with a fixed train and held-out split.

    Attributes:
      shape: (h, w, c) of one image.
      num_classes: a network is given labels 0 .. num_classes - 1; 0 for one without labels.
      num_labels: labels of the data are 0 .. num_labels - 1, whether a network is given them or
        not; 0 or 1 where the data have none.
    """

    shape: tuple[int, ...]
    num_classes: int
    num_labels: int

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Source]:
        """Batches number start, start + 1, ... of training images, without end.

        Batch n is a function of (seed, n) alone, so a run may resume at any step and on any number
        of processes. Each epoch is a new permutation.

        Args:
          seed: from 0.
          start: from 0.
          size: of the whole batch.
          part: (i, n) gives the i-th of n equal consecutive parts, for process i of n.
        """
        ...

    def images(self, split: str, num: int | None = None) -> Source:
        """A fixed sample of `num` images, all where None or there are not so many.

        Args:
          split: "train", which networks and reference statistics see, or "held_out", which they
            never see.
          num: how many.
        """
        ...
