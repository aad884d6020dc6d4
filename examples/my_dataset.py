"""A dataset of one's own: discs and squares, drawn as they are needed.

    config.data = dict(name="examples.my_dataset:Shapes", size=8)

    python -m distill_jax.main --config=examples/my_config.py

It says what distill_jax.data.Dataset asks for. Images in memory need less: a function that returns
distill_jax.data.arrays.Arrays, such as distill_jax.data.digits.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from distill_jax.data.base import LabelledImages, Rows, Source, index_of

SEEDS = {"train": 0, "test": 1}  # Of the images that samples are compared with.


@dataclasses.dataclass(frozen=True)
class Shapes(LabelledImages):
    """A light disc (label 0) or square (label 1) on black, of random place and size, without end.

    Args:
      size: of the images (size, size, 1), in pixels.
      count: images in a split.
    """

    size: int = 8
    count: int = 2000

    num_classes = num_labels = 2

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, self.size, 1)

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """Batch n is a function of (seed, n): a run goes on where it was stopped."""
        for step in itertools.count(start):
            index = index_of(step, size, part)
            x, label = self._draw(np.random.default_rng((2, seed, step)), size)
            rows = index - step * size
            yield Rows(index, x[rows], self.conditions(label[rows]))

    def images(self, split: str, num: int | None = None) -> Source:
        x, label = self._draw(np.random.default_rng(SEEDS[split]), self.count)
        return Source(x[:num], label[:num])

    def _draw(self, rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
        label = np.arange(num, dtype=np.int32) % self.num_classes
        radius, row, column = rng.uniform([[0.2], [0.4], [0.4]], [[0.35], [0.6], [0.6]], (3, num))
        pixel = (np.arange(self.size) + 0.5) / self.size
        y = np.abs(pixel[None, :, None] - row[:, None, None])
        x = np.abs(pixel[None, None, :] - column[:, None, None])
        far = np.where(label[:, None, None] == 0, np.hypot(x, y), np.maximum(x, y))
        light = (radius[:, None, None] - far) * self.size + 0.5  # The part of a pixel inside.
        return (2 * np.clip(light, 0, 1) - 1).astype(np.float32)[..., None], label
