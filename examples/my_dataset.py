"""Your own dataset: discs and squares, drawn on demand.

    config.data = dict(name="examples.my_dataset:Shapes", size=8)

    python -m distill_jax.main --config=examples/my_config.py

It implements the protocol distill_jax.data.Dataset. Images in memory need only a function that
returns distill_jax.data.arrays.Arrays, such as distill_jax.data.digits.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import numpy as np

from distill_jax.data.base import LabelledImages, Rows, Source, Summary, index_of

SEEDS = {"train": 0, "test": 1}  # Seeds of the fixed images of each split, for metrics.


@dataclasses.dataclass(frozen=True)
class Shapes(LabelledImages):
    """A dataset of light discs (label 0) and squares (label 1) on black, of random place and size.

    Args:
      size: side of the images (size, size, 1) in pixels.
      count: fixed images in each split; training images are drawn without end.
    """

    size: int = 8
    count: int = 2000

    num_classes = num_labels = 2

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size, self.size, 1)

    @property
    def summary(self) -> Summary:
        """What the plan prints; another fingerprint means other images."""
        counts = dict.fromkeys(SEEDS, self.count)
        return Summary(counts, ("disc", "square"), fingerprint=f"{self.size} {self.count}")

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        """Yields batch n as a function of (seed, n), so that a run resumes where it was stopped."""
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
        light = (radius[:, None, None] - far) * self.size + 0.5  # Share of the pixel inside.
        return (2 * np.clip(light, 0, 1) - 1).astype(np.float32)[..., None], label
