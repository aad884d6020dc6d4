"""Images on disk, decoded by grain's threads as they are needed."""

import contextlib
import dataclasses
import io
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, runtime_checkable

import grain
import numpy as np
from PIL import Image, UnidentifiedImageError

from distill_jax.data.base import LabelledImages, Rows, Source, index_of
from distill_jax.data.resizing import RESIZERS
from distill_jax.runtime.registry import lookup

CACHE_BYTES = 2**31  # Of decoded images of a split that are kept in memory; see Decoded.
# Images of each split without which a report has no moments of a half, nor of what is held out.
MIN_IMAGES = {"train": 4, "test": 2}
THREADS = min(16, os.cpu_count() or 1)  # Each makes a whole batch.


class Encoded(NamedTuple):
    """One image as it is stored.

    Attributes:
      data: a PNG, JPEG or other file.
      label: from 0.
      name: in messages.
    """

    data: bytes
    label: int
    name: str


@runtime_checkable
class Stored(Protocol):
    """A split on disk; several threads may read it at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Encoded: ...


class Decoded:
    """Image and label by index: (size, size, 3) uint8, int32.

    An image is decoded when it is first asked for. Where all of a split take at most
    `cache_bytes`, it is then kept. Nothing is read before the length is asked for, so that a run
    can be planned where the data are not.

    Args:
      read: finds where images are read.
      size: of the images.
      cache_bytes: of memory.
      resize: a name in RESIZERS: how they are made square and of that size.
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
        self._stored = None

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
        data, label, name = self._stored[index]
        x, label = self._resize(decode(data, name), self.shape[0]), np.int32(label)
        if self._cached:
            # Two threads may both get here: they write the same, and `done` comes last.
            self._x[index], self._label[index] = x, label
            self._done[index] = True
        return x, label


class ImageDataset(LabelledImages):
    """Images that are read and decoded as they are needed, in uint8; see Dataset.

    Attributes:
      train: what networks and reference statistics see.
      test: what they never see.
      num_labels: 1 where the data have none.
      labelled: whether a network is given the labels.
      flip: whether half of the training images are mirrored left to right, others in each epoch.
    """

    train: Decoded
    test: Decoded
    num_labels: int
    labelled: bool
    flip: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """(size, size, 3) of one image."""
        return self.train.shape

    @property
    def num_classes(self) -> int:
        """Classes that a network is given; 0 where it is given none."""
        return self.num_labels if self.labelled and self.num_labels > 1 else 0

    def images(self, split: str, num: int | None = None) -> Source:
        """See Dataset.images; decoded on several threads."""
        source = {"train": self.train, "test": self.test}[split]
        order = sorted(np.random.default_rng(0).permutation(len(source))[:num].tolist())
        with ThreadPoolExecutor(THREADS) as threads:
            return _stack(list(threads.map(source.__getitem__, order)))

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """See Dataset.batches; decoded ahead on several threads."""
        index, count = part
        order, flips = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
        stream = grain.MapDataset.source(self.train).shuffle(order).repeat()
        if self.flip:
            stream = stream.random_map(_flip, seed=flips)
        # Batches of a part's size: every count-th of them is this part of a whole batch.
        parts = stream.batch(size // count, batch_fn=_stack)[start * count + index :: count]
        for step, (x, label) in enumerate(_iterate(parts), start):
            yield Rows(index_of(step, size, part), x, self.conditions(label))


@dataclasses.dataclass(frozen=True, eq=False)
class Images(ImageDataset):
    """An ImageDataset of two splits."""

    train: Decoded
    test: Decoded
    num_labels: int
    labelled: bool = True
    flip: bool = True


def _iterate(batches: grain.MapDataset) -> Iterator[Source]:
    """Batches in order, read ahead on THREADS threads; closing ends them."""
    options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=THREADS + 1)
    with contextlib.closing(iter(batches.to_iter_dataset(options))) as iterator:
        yield from iterator


def _stack(examples: Sequence[tuple[np.ndarray, np.integer]]) -> Source:
    """Examples as one batch."""
    return Source(*(np.stack(column) for column in zip(*examples, strict=True)))


def _flip(
    example: tuple[np.ndarray, np.integer], rng: np.random.Generator
) -> tuple[np.ndarray, np.integer]:
    """The example, mirrored left to right with probability 1/2."""
    x, label = example
    return (x[:, ::-1] if rng.random() < 0.5 else x), label


def decode(data: bytes, name: str) -> np.ndarray:
    """The pixels (h, w, 3), uint8, of an image file; grey is repeated, transparency dropped.

    Raises:
      ValueError: naming the image when its bytes are none, or have more than 8 bits per channel.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.mode[0] not in "IF":  # The modes of 16 and 32 bits.
                return np.asarray(image.convert("RGB"))
            problem = f"its pixels are {image.mode}, expected 8 bits per channel"
    except UnidentifiedImageError:
        problem = "its format is none that Pillow knows"
    except (OSError, SyntaxError, ValueError) as error:
        problem = str(error)
    raise ValueError(f"{name} cannot be read as an image ({problem}); repair or remove it")
