"""What a dataset is: batches as a function of (seed, step), and fixed samples to compare with."""

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from distill_jax.diffusion.spec import DataSpec, Leaf, image_data


class Source(NamedTuple):
    """Images (n, h, w, c), float32 in [-1, 1] or uint8 in 0 .. 255, and labels, int32 (n,)."""

    x: np.ndarray
    label: np.ndarray


class Rows(NamedTuple):
    """A batch, or a process's part of one, as a dataset yields it; see typing.Batch."""

    index: np.ndarray
    x: np.ndarray | None
    cond: Mapping[str, np.ndarray]


@runtime_checkable
class Dataset(Protocol):
    """Images with conditions, and a fixed train and test split.

    Attributes:
      spec: what a network is given.
      null: the conditions that stand for "no condition", one example, leaves (1, ...).
      num_labels: labels of the data are 0 .. num_labels - 1, whether a network is given them or
        not; 0 or 1 where the data have none.
    """

    spec: DataSpec
    null: Mapping[str, np.ndarray]
    num_labels: int

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """Batches number start, start + 1, ... of training examples, without end.

        Batch n is a function of (seed, n) only, so a run may resume at any step and on any number
        of processes. Each epoch is a new permutation.

        Args:
          seed: from 0.
          start: from 0.
          size: of the whole batch.
          part: (i, n) gives the i-th of n equal consecutive parts, for process i of n.
        """
        ...

    def without_images(self) -> "Dataset":
        """The dataset whose x is None, for data-free methods: conditions drawn at random."""
        ...

    def images(self, split: str, num: int | None = None) -> Source:
        """A fixed sample of `num` images, all where None or there are not so many.

        Args:
          split: "train", which networks and reference statistics see, or "test", which they
            never see.
          num: how many.
        """
        ...


def index_of(step: int, size: int, part: tuple[int, int]) -> np.ndarray:
    """Numbers of the examples of a part of batch number `step`."""
    i, count = part
    return np.arange(step * size + i * size // count, step * size + (i + 1) * size // count)


class LabelledImages:
    """The parts of a Dataset that follow from its shape and its labels.

    Attributes:
      shape: (h, w, c) of one image.
      num_classes: a network is given labels 0 .. num_classes - 1; 0 for one without labels.
      bounded: whether pixels lie in [-1, 1].
    """

    shape: tuple[int, ...]
    num_classes: int
    bounded: bool = True

    @property
    def spec(self) -> DataSpec:
        """Images of this shape, with integer labels where there are classes."""
        return image_data(self.shape, self.num_classes, self.bounded)

    @property
    def null(self) -> dict[str, np.ndarray]:
        """The null label, num_classes, of shape (1,); {} without classes."""
        return self.conditions(np.full(1, self.num_classes, np.int32))

    def conditions(self, label: np.ndarray) -> dict[str, np.ndarray]:
        """The conditions that a network is called with for these labels."""
        return {"label": label} if self.num_classes else {}

    def without_images(self) -> "Labels":
        """Uniform labels of the same classes, for data-free methods."""
        return Labels(self.spec)


class Labels(LabelledImages):
    """Uniform labels without images, for data-free methods."""

    num_labels = 0

    def __init__(self, spec: DataSpec):
        self.shape, self.bounded = spec.x.shape, spec.bounded
        self.num_classes = dict(spec.cond).get("label", Leaf()).classes or 0

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """Batches of labels drawn uniformly from (seed, step); x is None."""
        for step in itertools.count(start):
            index = index_of(step, size, part)
            rng = np.random.default_rng((seed, step))
            label = rng.integers(max(self.num_classes, 1), size=size, dtype=np.int32)
            yield Rows(index, None, self.conditions(label[index - step * size]))

    def images(self, split: str, num: int | None = None) -> Source:
        """Raises ValueError, because there are no images."""
        raise ValueError("this dataset has conditions only, and no images")
