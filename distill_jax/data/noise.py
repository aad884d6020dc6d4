"""Fake data of any shape: for smoke tests, plans and benchmarks, not for quality."""

import numpy as np

from distill_jax.data.arrays import Arrays
from distill_jax.data.base import Source


def noise(size: int = 32, channels: int = 3, num_classes: int = 10, count: int = 256) -> Arrays:
    """`count` images (size, size, channels) of clipped normal noise with labels in turn."""

    def source(seed: int) -> Source:
        x = np.random.default_rng(seed).normal(scale=0.5, size=(count, size, size, channels))
        label = np.arange(count, dtype=np.int32) % num_classes
        return Source(np.clip(x, -1, 1).astype(np.float32), label)

    return Arrays(source(0), source(1), num_classes)
