"""The mixture dataset: points of a toy mixture with a known denoiser, as one-pixel images."""

from typing import Annotated

import numpy as np

from distill_jax.data.arrays import Arrays
from distill_jax.data.base import Source
from distill_jax.diffusion.analytic import ring
from distill_jax.runtime.options import whole

SEED = 0  # With this seed all points lie within [-1, 1].


def mixture(count: Annotated[int, whole(8, high=10_000_000)] = 20_000) -> Arrays:
    """Draws `count` points (1, 1, 2) of diffusion.analytic.ring for each of the two splits.

    All modes have the same number of points, so that the reference adds no chance to the distance
    of samples. An exact sampler chooses its modes at random. So the best distance of a student is
    that of an exact sampler, not the floor.

    Args:
      count: points in each split.
    """
    toy, rng = ring(), np.random.default_rng(SEED)
    mode = np.arange(count) % len(toy.labels)

    def source() -> Source:
        x = np.asarray(toy.means)[mode] + toy.std * rng.normal(size=(count, 2))
        label = np.asarray(toy.labels, np.int32)[mode]
        return Source(x.astype(np.float32).reshape(-1, 1, 1, 2), label)

    return Arrays(source(), source(), num_classes=4, num_labels=4, bounded=False)
