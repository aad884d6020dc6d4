"""The dataset protocol: batches as a function of (seed, step), and fixed samples for metrics."""

import collections
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from distill_jax.diffusion.spec import DataSpec, Leaf, image_data


class Source(NamedTuple):
    """Images (n, h, w, c), float32 in [-1, 1] or uint8 in 0 .. 255, with int32 labels (n,)."""

    x: np.ndarray
    label: np.ndarray


class Rows(NamedTuple):
    """A batch of a dataset, or one process's shard of it; see typing.Batch.

    Captions are texts, cond "caption" of dtype object, until a conditioner has encoded them.
    """

    index: np.ndarray  # type: ignore[assignment]  # Hides tuple.index, which nobody calls.
    x: np.ndarray | None
    cond: Mapping[str, np.ndarray]


class Summary(NamedTuple):
    """A summary of a dataset, for the plan of a run and to notice changes.

    Attributes:
      counts: number of examples in each split; {} if it is unknown.
      classes: names of the classes, in the order of their labels; one or none without labels.
      notes: how the examples were found, in words.
      passed: what was passed over, and why.
      fingerprint: hash of names, labels and sizes; "" if it is unknown.
      captions: number of "all" captions or prompts, and of "different" ones; {} if it is unknown.
    """

    counts: Mapping[str, int] = {}
    classes: Sequence[str] = ()
    notes: Sequence[str] = ()
    passed: Sequence[str] = ()
    fingerprint: str = ""
    captions: Mapping[str, int] = {}


class Checked(NamedTuple):
    """The result of opening the images of a dataset.

    Attributes:
      opened: number of images that were opened.
      problems: messages about those that cannot be used.
    """

    opened: int
    problems: list[str]


@runtime_checkable
class Dataset(Protocol):
    """A dataset of images with conditions, and a fixed train and test split.

    It may also have a property `summary`, a Summary for the plan, and a method `check(part)` that
    opens the i-th of n shares of its images for part (i, n), and returns what it Checked. If its
    conditions are captions, it has a method `captions(split, num)`, which returns the texts of
    `images(split, num)`. A dataset of conditions only has an attribute `has_images` that is False.

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


@runtime_checkable
class Encodable(Protocol):
    """A dataset whose training images have numbers, so that they can be encoded once.

    Attributes:
      flip: whether batches have mirrored images, `x[:, ::-1]` of an image (h, w, c).
    """

    @property
    def flip(self) -> bool: ...

    @property
    def num_examples(self) -> int:
        """The number of training images."""
        ...

    def examples(self, rows: np.ndarray) -> Source:
        """Returns training images by their numbers 0 .. num_examples - 1, none of them mirrored."""
        ...

    def with_train(self, train: "Examples") -> Dataset:
        """Returns the dataset with arrays in place of its training images: the same draws."""
        ...


@runtime_checkable
class Examples(Protocol):
    """Arrays (h, w, c) of any dtype with labels, by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[np.ndarray, np.integer]: ...


def index_of(step: int, size: int, part: tuple[int, int]) -> np.ndarray:
    """Returns the numbers of the examples in one shard of batch number `step`."""
    i, count = part
    return np.arange(step * size + i * size // count, step * size + (i + 1) * size // count)


def summarise(dataset: Dataset) -> Summary:
    """Returns the summary of a dataset, with its number of classes if it has none."""
    found: Summary = getattr(dataset, "summary", Summary())
    return found if found.classes else found._replace(classes=_numbers(dataset.num_labels))


def count_of(texts: Iterable[str]) -> dict[str, int]:
    """Returns the number of all texts and of different ones, for Summary.captions."""
    counts = collections.Counter(texts)
    return {"all": counts.total(), "different": len(counts)}


def has_images(dataset: Dataset) -> bool:
    """Returns whether a dataset has images; see Dataset."""
    return bool(getattr(dataset, "has_images", True))


def check(dataset: Dataset, part: tuple[int, int] = (0, 1)) -> Checked:
    """Opens the images of a dataset if it can, otherwise one of each split."""
    if hasattr(dataset, "check"):
        checked: Checked = dataset.check(part)
        return checked
    for split in ("train", "test"):
        check_labels(dataset.images(split, 1).label, dataset.num_labels, f"split {split!r}")
    return Checked(2, [])


def check_labels(label: np.ndarray | int, num: int, name: str) -> None:
    """Raises ValueError unless all labels are in 0 .. num - 1; `name` says whose they are."""
    wrong = np.extract((np.asarray(label) < 0) | (np.asarray(label) >= max(1, num)), label)
    if len(wrong):
        raise ValueError(
            f"{name} has the label {wrong[0]}; expected 0 to {max(1, num) - 1}: correct the labels "
            "or the number of classes"
        )


def with_labels_in_range(batches: Iterator[Rows], spec: DataSpec) -> Iterator[Rows]:
    """Yields the batches of a dataset; raises ValueError for a label that is no class of it."""
    for rows in batches:
        for name, leaf in spec.cond:
            if leaf.classes:
                check_labels(rows.cond[name], leaf.classes, f"a batch of the data ({name})")
        yield rows


def _numbers(num: int) -> tuple[str, ...]:
    return tuple(map(str, range(num)))


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
    """A dataset of uniform labels without images, for data-free methods.

    Args:
      spec: spec of the images that the labels stand for.
      kept: labels to draw from; None for all classes of the spec.
    """

    num_labels = 0
    has_images = False

    def __init__(self, spec: DataSpec, kept: np.ndarray | None = None):
        self._kept = kept
        self.shape, self.bounded = spec.x.shape, spec.bounded
        self.num_classes = dict(spec.cond).get("label", Leaf()).classes or 0

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """Yields batches of labels drawn uniformly from (seed, step); x is None."""
        for step in itertools.count(start):
            index = index_of(step, size, part)
            rng = np.random.default_rng((seed, step))
            kept = np.arange(max(self.num_classes, 1)) if self._kept is None else self._kept
            label = kept[rng.integers(len(kept), size=size, dtype=np.int32)].astype(np.int32)
            yield Rows(index, None, self.conditions(label[index - step * size]))

    def images(self, split: str, num: int | None = None) -> Source:
        """Raises ValueError, because the dataset has no images."""
        raise ValueError("this dataset has conditions only, and no images")
