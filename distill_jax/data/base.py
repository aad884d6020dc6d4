"""The dataset protocol: batches as a function of (seed, step), and fixed samples for metrics."""

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from distill_jax.diffusion.spec import DataSpec, Leaf, image_data


class Source(NamedTuple):
    """Images (n, h, w, c), float32 in [-1, 1] or uint8 in 0 .. 255, with int32 labels (n,)."""

    x: np.ndarray
    label: np.ndarray


class Rows(NamedTuple):
    """A batch of a dataset, or one process's shard of it; see typing.Batch."""

    index: np.ndarray  # type: ignore[assignment]  # Hides tuple.index, which nobody calls.
    x: np.ndarray | None
    cond: Mapping[str, np.ndarray]


@runtime_checkable
class Dataset(Protocol):
    """A dataset of images with conditions, and a fixed train and test split.

    Attributes:
      spec: spec of one example.
      null: null condition, one example with leaves (1, ...).
      num_labels: number of labels of the data, whether or not they condition the network; 0 or 1
        for data without labels.
    """

    @property
    def spec(self) -> DataSpec: ...

    @property
    def null(self) -> Mapping[str, np.ndarray]: ...

    @property
    def num_labels(self) -> int: ...

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """Yields batches of training examples number start, start + 1, ... without end.

        Batch n is a function of (seed, n) only, so a run can resume at any step and on any number
        of processes. Each epoch is a new permutation.

        Args:
          seed: seed of the order, at least 0.
          start: number of the first batch, at least 0.
          size: examples in the global batch.
          part: (i, n) selects the i-th of n equal consecutive shards, for process i of n.
        """
        ...

    def without_images(self) -> "Dataset":
        """Returns a dataset of random conditions without images, for data-free methods."""
        ...

    def images(self, split: str, num: int | None = None) -> Source:
        """Returns a fixed sample of a split.

        Args:
          split: "train", for training and reference statistics, or "test".
          num: number of images; None, or a number above the split's size, returns all.
        """
        ...


def index_of(step: int, size: int, part: tuple[int, int]) -> np.ndarray:
    """Returns the numbers of the examples in one shard of batch number `step`."""
    i, count = part
    return np.arange(step * size + i * size // count, step * size + (i + 1) * size // count)


class LabelledImages:
    """Base class of datasets of images with optional integer labels.

    Attributes:
      shape: shape (h, w, c) of one image.
      num_classes: number of classes that condition the network; 0 for no labels.
      bounded: whether pixels lie in [-1, 1].
    """

    shape: tuple[int, ...]
    num_classes: int
    bounded: bool = True

    @property
    def spec(self) -> DataSpec:
        """The spec of images of this shape, with integer labels if there are classes."""
        return image_data(self.shape, self.num_classes, self.bounded)

    @property
    def null(self) -> dict[str, np.ndarray]:
        """The null condition: the label num_classes of shape (1,); {} without classes."""
        return self.conditions(np.full(1, self.num_classes, np.int32))

    def conditions(self, label: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the conditions of the network for these labels."""
        return {"label": label} if self.num_classes else {}

    def without_images(self) -> "Labels":
        """Returns a dataset of uniform labels of the same classes, for data-free methods."""
        return Labels(self.spec)


class Labels(LabelledImages):
    """A dataset of uniform labels without images, for data-free methods."""

    num_labels = 0

    def __init__(self, spec: DataSpec):
        self.shape, self.bounded = spec.x.shape, spec.bounded
        self.num_classes = dict(spec.cond).get("label", Leaf()).classes or 0

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """Yields batches of labels drawn uniformly from (seed, step); x is None."""
        for step in itertools.count(start):
            index = index_of(step, size, part)
            rng = np.random.default_rng((seed, step))
            label = rng.integers(max(self.num_classes, 1), size=size, dtype=np.int32)
            yield Rows(index, None, self.conditions(label[index - step * size]))

    def images(self, split: str, num: int | None = None) -> Source:
        """Raises ValueError, because the dataset has no images."""
        raise ValueError("this dataset has conditions only, and no images")
