"""Fake data of any shape: for smoke tests, plans and benchmarks, not for quality."""

import numpy as np

from distill_jax.data.arrays import Arrays
from distill_jax.data.base import Source


def noise(
    size: int = 32,
    channels: int = 3,
    num_classes: int = 10,
    count: int = 256,
    num_labels: int | None = None,
) -> Arrays:
    """`count` images (size, size, channels) of clipped normal noise in uint8, as real images are.

    Args:
      size: in pixels.
      channels: of an image.
      num_classes: 0 for a network without labels.
      count: of training images, and of held-out ones.
      num_labels: of the data, given in turn; None is num_classes, or 1 without classes.

    Raises:
      ValueError: when a network is given other labels than the data have.
    """
    num_labels = num_labels or num_classes or 1
    if num_classes not in (0, num_labels):
        raise ValueError(
            f"num_classes is {num_classes} and num_labels {num_labels}; expected the same, or "
            "num_classes 0 for a network without labels"
        )

    def source(seed: int) -> Source:
        x = np.random.default_rng(seed).normal(127.5, 64, size=(count, size, size, channels))
        label = np.arange(count, dtype=np.int32) % num_labels
        return Source(np.rint(np.clip(x, 0, 255)).astype(np.uint8), label)

    return Arrays(source(0), source(1), num_classes, num_labels)
