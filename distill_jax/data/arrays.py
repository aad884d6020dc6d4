"""Small datasets that are kept in memory."""

import dataclasses
import functools
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from distill_jax.data.base import (
    Examples,
    LabelledImages,
    Labels,
    Rows,
    Source,
    Summary,
    check_labels,
    count_of,
    index_of,
)
from distill_jax.data.prompts import Prompts, as_array
from distill_jax.diffusion.spec import DataSpec, caption_data


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays(LabelledImages):
    """A dataset whose images are all in memory.

    Attributes:
      train: examples for training and reference statistics.
      test: examples of the test split.
      num_classes: number of classes that condition the network; 0 for no labels.
      num_labels: see Dataset.
      bounded: whether pixels lie in [-1, 1].
      texts: captions of the images of "train" and "test"; {} for data without captions.

    Raises:
      ValueError: for labels that are not in 0 .. num_labels - 1, and for labels or captions that
        are not one for each image.
    """

    train: Source
    test: Source
    num_classes: int
    num_labels: int
    bounded: bool = True
    texts: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)

    flip = False

    def __post_init__(self) -> None:
        for name, split in (("train", self.train), ("test", self.test)):
            if split.label.shape != split.x.shape[:1]:
                raise ValueError(
                    f"split {name!r} has labels of shape {split.label.shape} for images of shape "
                    f"{split.x.shape}; expected one for each image"
                )
            if self.texts and len(self.texts[name]) != len(split.x):
                raise ValueError(
                    f"split {name!r} has {len(self.texts[name])} captions for {len(split.x)} "
                    "images; expected one for each image"
                )
            check_labels(split.label, self.num_labels, f"split {name!r}")

    @property
    def spec(self) -> DataSpec:
        """The spec of the images, with captions or labels if there are any."""
        return caption_data(self.shape) if self.texts else super().spec

    @property
    def null(self) -> dict[str, np.ndarray]:
        """The empty caption, or the null label; see LabelledImages."""
        return {"caption": as_array([""])} if self.texts else super().null

    @property
    def summary(self) -> Summary:
        """See Summary; images of floats count with their shape, uint8 with their values."""
        digest, counts = hashlib.sha256(), {}
        for name, (x, label) in (("train", self.train), ("test", self.test)):
            counts[name] = len(label)
            digest.update("\0".join(self.texts.get(name, ())).encode())
            digest.update(f"{x.shape} {x.dtype}".encode() + label.astype("<i4").tobytes())
            if x.dtype == np.uint8:
                digest.update(np.ascontiguousarray(x).data)
        captions = count_of(itertools.chain(*self.texts.values())) if self.texts else {}
        return Summary(counts, fingerprint=digest.hexdigest()[:16], captions=captions)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape (h, w, c) of one image."""
        return self.train.x.shape[1:]

    @property
    def num_examples(self) -> int:
        """The number of training images."""
        return len(self.train.label)

    def examples(self, rows: np.ndarray) -> Source:
        """Returns training images by their numbers; see Encodable."""
        return Source(self.train.x[rows], self.train.label[rows])

    def with_train(self, train: Examples) -> "Arrays":
        """Returns the dataset with other arrays as training images; see Encodable."""
        x = np.stack([train[i][0] for i in range(len(train))])
        return dataclasses.replace(self, train=Source(x, self.train.label))

    def images(self, split: str, num: int | None = None) -> Source:
        """Returns a fixed sample of a split, the same in every run; see Dataset.images."""
        source = {"train": self.train, "test": self.test}[split]
        if num is None or num >= len(source.label):
            return source
        order = _sample(len(source.label), num)
        return Source(source.x[order], source.label[order])

    def captions(self, split: str, num: int | None = None) -> list[str]:
        """Returns the captions of `images` with the same arguments."""
        known = self.texts[split]
        return [known[i] for i in _sample(len(known), num)]

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
        if self.texts:
            cond = {"caption": as_array([self.texts["train"][i] for i in order])}
        else:
            cond = self.conditions(self.train.label[order])
        return Rows(index, self.train.x[order], cond)

    def without_images(self) -> Labels | Prompts:
        """Returns a dataset of the captions, or of uniform labels of the training images."""
        if self.texts:
            return Prompts(self.spec, tuple(self.texts["train"]))
        return Labels(self.spec, np.unique(self.train.label) if self.num_classes else None)


def _sample(n: int, num: int | None) -> np.ndarray:
    """Returns the numbers of a fixed sample of n examples, in order; all of them for None."""
    if num is None or num >= n:
        return np.arange(n)
    return np.sort(_permutation(0, 0, n)[:num])


@functools.lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """Returns the order of n examples in an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(n)
