"""Datasets of images on disk, decoded on demand by grain's threads."""

import contextlib
import copy
import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import grain
import numpy as np

from distill_jax.data.base import (
    Checked,
    Examples,
    LabelledImages,
    Rows,
    Source,
    Summary,
    index_of,
)
from distill_jax.data.decoding import decode
from distill_jax.data.resizing import RESIZERS
from distill_jax.runtime.options import whole
from distill_jax.runtime.registry import lookup

CACHE_BYTES = 2**31  # Limit of the memory cache of decoded images of a split; see Decoded.
# Fewest images per split for which the report's statistics are defined.
MIN_IMAGES = {"train": 4, "test": 2}
SIDE = whole(1, high=8192)  # Of the images, in pixels.
CHECK_SECONDS = 600.0  # Limit of the time in which the images of a split are opened at the start.
THREADS = min(16, os.cpu_count() or 1)  # Each thread builds a whole batch.


class Encoded(NamedTuple):
    """One image as it is stored, with its label.

    Attributes:
      data: bytes of a PNG, JPEG or other image file.
      label: class number, at least 0.
      name: name of the image in error messages.
    """

    data: bytes
    label: int
    name: str


@runtime_checkable
class Stored(Protocol):
    """A split on disk that several threads may read at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Encoded: ...

    def check(self, index: int) -> None:
        """Raises ValueError or OSError for an image that cannot be opened."""
        ...


class Decoded:
    """A split of decoded images: uint8 (size, size, 3) and int32 label by index.

    An image is decoded at its first use. If the whole split takes at most `cache_bytes`, it is then
    kept in memory. Nothing is read before the length is needed, so that a run can be planned on a
    machine without the data.

    Args:
      read: opens the split on disk.
      size: side of the square images in pixels.
      cache_bytes: limit of the memory cache in bytes.
      resize: name in RESIZERS of the function that makes images square and of that size.
    """

    def __init__(
        self,
        read: Callable[[], Stored],
        size: int,
        cache_bytes: int = CACHE_BYTES,
        resize: str = "area",
    ):
        self.shape = (size, size, 3)
        self._read, self._cache_bytes = read, cache_bytes
        self._resize = lookup(RESIZERS, "resize", resize)
        self._stored: Stored | None = None

    def __len__(self) -> int:
        if self._stored is None:
            self._stored = self._read()
            count = len(self._stored)
            self._cached = math.prod(self.shape) * count <= self._cache_bytes
            kept = count if self._cached else 0
            self._x = np.empty((kept, *self.shape), np.uint8)
            self._label = np.zeros(kept, np.int32)
            self._done = np.zeros(kept, bool)
        return len(self._stored)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.integer]:
        if self._cached and self._done[index]:
            return self._x[index], self._label[index]
        assert self._stored is not None  # Whoever asks for an image has asked for the length.
        data, number, name = self._stored[index]
        x = decode(data, name, lambda x: self._resize(x, self.shape[0]))
        label = np.int32(number)
        if self._cached:
            # Two threads may decode one image: they write equal values, and `done` comes last.
            self._x[index], self._label[index] = x, label
            self._done[index] = True
        return x, label

    def check(self, indices: Sequence[int], seconds: float) -> Checked:
        """Opens images of the split on several threads, and none after so many seconds."""
        stored, end = self._stored, time.monotonic() + seconds
        assert stored is not None

        def problem(index: int) -> str | None:
            if time.monotonic() > end:
                return None
            try:
                stored.check(index)
            except (ValueError, OSError) as error:
                return str(error)
            return ""

        found = [each for each in in_threads(problem, indices) if each is not None]
        return Checked(len(found), [each for each in found if each])


def in_threads(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Yields the results for all items in order, from several threads and in bounded memory."""
    with ThreadPoolExecutor(THREADS) as threads:
        for start in range(0, len(items), 4096):
            yield from threads.map(function, items[start : start + 4096])


class ImageDataset(LabelledImages):
    """A dataset of uint8 images that are read and decoded on demand; see Dataset.

    Attributes:
      train: examples for training and reference statistics.
      test: examples of the test split.
      num_labels: number of labels of the data, 1 for data without labels.
      labelled: whether the labels condition the network.
      flip: whether a random half of the training images is mirrored in each epoch.
    """

    train: Decoded
    test: Decoded
    num_labels: int
    labelled: bool
    flip: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (size, size, 3) of one image."""
        return self.train.shape

    @property
    def num_classes(self) -> int:
        """The number of classes that condition the network; 0 for no labels."""
        return self.num_labels if self.labelled and self.num_labels > 1 else 0

    @property
    def num_examples(self) -> int:
        """The number of training images."""
        return len(self.train)

    def examples(self, rows: np.ndarray) -> Source:
        """Returns training images by their numbers, decoded on several threads; see Encodable."""
        assert self.num_examples  # This opens the split.
        return _stack(list(in_threads(self.train.__getitem__, rows.tolist())))

    def with_train(self, train: Examples) -> "ImageDataset":
        """Returns the dataset with other arrays as training images; see Encodable."""
        made = copy.copy(self)
        object.__setattr__(made, "train", train)  # Some of these datasets are frozen.
        return made

    def images(self, split: str, num: int | None = None) -> Source:
        """Returns a fixed sample of a split, decoded on several threads; see Dataset.images."""
        source = {"train": self.train, "test": self.test}[split]
        order = sorted(np.random.default_rng(0).permutation(len(source))[:num].tolist())
        with ThreadPoolExecutor(THREADS) as threads:
            return _stack(list(threads.map(source.__getitem__, order)))

    def check(self, part: tuple[int, int] = (0, 1)) -> Checked:
        """Opens every image of both splits, in a random order for at most 2 CHECK_SECONDS.

        Args:
          part: (i, n) opens the i-th of n equal shares, for process i of n.
        """
        (i, n), rng = part, np.random.default_rng(0)
        checked = [
            split.check(rng.permutation(len(split))[i::n].tolist(), CHECK_SECONDS)
            for split in (self.test, self.train)
        ]
        return Checked(sum(each.opened for each in checked), sum((c.problems for c in checked), []))

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """Yields batches that are prefetched on several threads; see Dataset.batches."""
        index, count = part
        order, flips = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
        stream = grain.MapDataset.source(self.train).shuffle(order).repeat()
        if self.flip:
            stream = stream.random_map(_flip, seed=flips)
        # Batches of a shard's size: every count-th of them is this shard of a global batch.
        parts = stream.batch(size // count, batch_fn=_stack)[start * count + index :: count]
        for step, (x, label) in enumerate(_iterate(parts), start):
            yield Rows(index_of(step, size, part), x, self.conditions(label))


@dataclasses.dataclass(frozen=True, eq=False)
class Images(ImageDataset):
    """An ImageDataset with given train and test splits."""

    train: Decoded
    test: Decoded
    num_labels: int
    labelled: bool = True
    flip: bool = True
    summary: Summary = Summary()


def _iterate(batches: grain.MapDataset) -> Iterator[Source]:
    """Yields batches in order, prefetched on THREADS threads; closing it ends the threads."""
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=THREADS + 1)
    with contextlib.closing(iter(batches.to_iter_dataset(options))) as iterator:
        yield from iterator


def _stack(examples: Sequence[tuple[np.ndarray, np.integer]]) -> Source:
    """Stacks examples into one batch."""
    return Source(*(np.stack(column) for column in zip(*examples, strict=True)))


def _flip(
    example: tuple[np.ndarray, np.integer], rng: np.random.Generator
) -> tuple[np.ndarray, np.integer]:
    """Mirrors an example left to right with probability 1/2."""
    x, label = example
    return (x[:, ::-1] if rng.random() < 0.5 else x), label
