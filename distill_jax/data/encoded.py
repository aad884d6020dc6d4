"""A dataset that encodes the images of another dataset into latents."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax.numpy as jnp
import numpy as np

from distill_jax.data.base import Checked, Dataset, Labels, Rows, Source, Summary, check, summarise
from distill_jax.diffusion.pixels import normalise
from distill_jax.diffusion.spec import DataSpec
from distill_jax.typing import Image, Resized


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """A dataset whose batches are latents, encoded when drawn; `images` returns the pixels.

    Attributes:
      source: dataset of images.
      spec: spec of the latents.
      encode: maps images (b, h, w, c) in [-1, 1] to latents.
    """

    source: Dataset
    spec: DataSpec
    encode: Callable[[Image], Resized]

    @property
    def null(self) -> Mapping[str, np.ndarray]:
        return self.source.null

    @property
    def num_labels(self) -> int:
        return self.source.num_labels

    @property
    def summary(self) -> Summary:
        return summarise(self.source)

    def check(self, part: tuple[int, int] = (0, 1)) -> Checked:
        return check(self.source, part)

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        for rows in self.source.batches(seed, start, size, part):
            assert rows.x is not None  # Data-free methods take `without_images`.
            yield rows._replace(x=np.asarray(self.encode(jnp.asarray(normalise(rows.x)))))

    def without_images(self) -> Labels:
        return Labels(self.spec)

    def images(self, split: str, num: int | None = None) -> Source:
        return self.source.images(split, num)
