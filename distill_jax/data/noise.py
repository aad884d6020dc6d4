"""The noise dataset: random images of any shape for smoke tests, plans and benchmarks."""

from typing import Annotated

import numpy as np

from distill_jax.data.arrays import Arrays
from distill_jax.data.base import Source
from distill_jax.runtime.options import whole

MAX_VALUES = 2**26  # Of all images of a split, which are in memory.


def noise(
    size: Annotated[int, whole(1, high=8192)] = 32,
    channels: Annotated[int, whole(1, high=1024)] = 3,
    num_classes: Annotated[int, whole(0, high=100_000)] = 10,
    count: Annotated[int, whole(2, high=10_000_000)] = 256,
    num_labels: Annotated[int, whole(1, high=100_000)] | None = None,
    captioned: bool = False,
) -> Arrays:
    """Draws `count` uint8 images (size, size, channels) of clipped normal noise per split.

    Args:
      size: side of the images in pixels.
      channels: channels of an image.
      num_classes: number of classes that condition the network; 0 for no labels.
      count: images in each split.
      num_labels: number of labels of the data, which take turns; None is num_classes, or 1 without
        classes.
      captioned: whether every image has a caption in place of a label: "noise" and its number.

    Raises:
      ValueError: if num_classes is neither 0 nor num_labels, or not 0 beside captions, and for more
        values than MAX_VALUES.
    """
    if count * size**2 * channels > MAX_VALUES:
        raise ValueError(
            f"count {count}, size {size} and channels {channels} make "
            f"{count * size**2 * channels:,} values, which are kept in memory; expected at most "
            f"{MAX_VALUES:,}"
        )
    num_labels = num_labels or num_classes or 1
    if num_classes not in (0, num_labels):
        raise ValueError(
            f"num_classes is {num_classes} and num_labels {num_labels}; expected the same, or "
            "num_classes 0 for a network without labels"
        )

    if captioned and num_classes:
        raise ValueError(f"num_classes is {num_classes}; expected 0 for images with captions")

    def source(seed: int) -> Source:
        x = np.random.default_rng(seed).normal(127.5, 64, size=(count, size, size, channels))
        label = np.arange(count, dtype=np.int32) % num_labels
        return Source(np.rint(np.clip(x, 0, 255)).astype(np.uint8), label)

    captions = [f"noise {i}" for i in range(count)] if captioned else []
    texts = dict.fromkeys(("train", "test"), captions) if captioned else {}
    return Arrays(source(0), source(1), num_classes, num_labels, texts=texts)
