"""Images with captions of a dataset that TFDS prepared, read without TensorFlow."""

import functools
import io
import os
from typing import Annotated

import numpy as np

from distill_jax.data import decoding
from distill_jax.data.captions import Captioned
from distill_jax.data.images import SIDE, Decoded, Encoded
from distill_jax.data.resizing import RESIZERS
from distill_jax.data.texts import Texts
from distill_jax.data.tfds import Records, Splits
from distill_jax.runtime.options import choice


def captioned_tfds(
    dataset: str,
    size: Annotated[int, SIDE],
    caption: str,
    data_dir: str = "",
    splits: tuple[str, str] = ("train", "test"),
    resize: Annotated[str, choice(RESIZERS)] = "area",
    flip: bool = False,
) -> Captioned:
    """Builds a dataset of images with captions from one that TFDS prepared; see Tfds.

    Captions are read with their images. An image without a caption has the empty one.

    Args:
      dataset: name, such as "coco_captions".
      size: side of the square images in pixels.
      caption: feature with the captions, a text or a list of texts, such as "captions/text".
      data_dir: directory of prepared datasets; "" is $TFDS_DATA_DIR, or else ~/tensorflow_datasets.
      splits: training split and test split, each a split or a slice.
      resize: name in RESIZERS of the function that makes images square and of that size.
      flip: whether half of the training images are mirrored, which turns left to right.

    Raises:
      ValueError: as Tfds, and for a feature that is no text.
    """
    found = Splits(dataset, os.path.expanduser(data_dir), splits, None, caption)
    summary = found.summary
    train = _Told(found.split(splits[0]), caption, 0)
    parts = train, _Told(found.split(splits[1]), caption, len(train))
    rows = {
        name: np.arange(part.first, part.first + len(part))
        for name, part in zip(("train", "test"), parts, strict=True)
    }
    first, second = (
        Decoded(functools.partial(lambda part: part, part), size, resize=resize) for part in parts
    )
    return Captioned(first, second, rows, _Captions(parts), flip, summary)


class _Told:
    """A split of images whose labels are the rows of their captions."""

    def __init__(self, records: Records, caption: str, first: int):
        self.first = first
        self._records, self._caption = records, caption
        self._texts: dict[int, Texts] = {}  # Those that were read with their images.

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Encoded:
        image, texts = self._records.example(index, self._caption)
        try:
            whole = (text.decode().strip() for text in texts)
            self._texts[index] = tuple(text for text in whole if text)
        except UnicodeDecodeError as error:
            raise ValueError(f"{image.name} has a caption that is no UTF-8 ({error})") from error
        return image._replace(label=self.first + index)

    def check(self, index: int) -> None:
        """Raises ValueError or OSError for an image or captions that cannot be read."""
        data, _, name = self[index]
        decoding.check(io.BytesIO(data), name)

    def texts(self, index: int) -> Texts:
        """Returns the captions of an image."""
        if index not in self._texts:
            _ = self[index]
        return self._texts[index]


class _Captions:
    """The captions of both splits by row."""

    def __init__(self, parts: tuple[_Told, _Told]):
        self._parts = parts

    def __getitem__(self, row: int) -> Texts:
        part = self._parts[row >= self._parts[1].first]
        return part.texts(row - part.first)
