"""Points of the toy mixture, whose exact denoiser is known: images of one pixel, two channels."""

import numpy as np

from distill_jax.data.arrays import Arrays
from distill_jax.data.base import Source
from distill_jax.diffusion.analytic import ring

SEED = 0  # One whose points all lie within [-1, 1].


def mixture(count: int = 20_000) -> Arrays:
    """`count` points (1, 1, 2) of diffusion.analytic.ring for training, and as many held out.

    The modes in turn: one class's two modes have the same number of points, so that chance in the
    reference does not count in the distance of samples. An exact sampler's own modes are chosen by
    chance, so its distance, and not the floor, is what a student can reach.

    Args:
      count: of each.
    """
    toy, rng = ring(), np.random.default_rng(SEED)
    mode = np.arange(count) % len(toy.labels)

    def source() -> Source:
        x = toy.means[mode] + toy.std * rng.normal(size=(count, 2))
        return Source(x.astype(np.float32).reshape(-1, 1, 1, 2), toy.labels[mode].astype(np.int32))

    return Arrays(source(), source(), num_classes=4, num_labels=4, bounded=False)
