"""A dataset that encodes the images and captions of another dataset."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax.numpy as jnp
import numpy as np

from distill_jax.data.base import Checked, Dataset, Labels, Rows, Source, Summary, check, summarise
from distill_jax.data.prompts import captions_of
from distill_jax.diffusion.pixels import normalise
from distill_jax.diffusion.spec import DataSpec
from distill_jax.typing import Image, Resized


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded:
    """A dataset whose batches are encoded when drawn; `images` returns the pixels.

    Attributes:
      source: dataset of images.
      spec: spec of the latents and encoded captions.
      encode: maps images (b, h, w, c) in [-1, 1] to latents; None for pixels.
      condition: maps captions (b,) to conditions, leaves (b, ...); None for data without captions.
    """

    source: Dataset
    spec: DataSpec
    encode: Callable[[Image], Resized] | None = None
    condition: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None = None

    @property
    def null(self) -> Mapping[str, np.ndarray]:
        """The null condition; zeros of its shapes before the text encoder is fitted."""
        null = self.source.null
        if self.condition is None:
            return null
        try:
            return self.condition(null["caption"])
        except FileNotFoundError:
            return {name: np.zeros((1, *leaf.shape), leaf.dtype) for name, leaf in self.spec.cond}

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
            x, cond = rows.x, rows.cond
            if self.encode is not None and x is not None:  # Data-free methods have no images.
                x = np.asarray(self.encode(jnp.asarray(normalise(x))))
            if self.condition is not None:
                cond = self.condition(cond["caption"])
            yield Rows(rows.index, x, cond)

    def without_images(self) -> Dataset:
        if self.condition is None:
            return Labels(self.spec)
        return dataclasses.replace(self, source=self.source.without_images())

    def images(self, split: str, num: int | None = None) -> Source:
        return self.source.images(split, num)

    def captions(self, split: str, num: int | None = None) -> list[str]:
        return captions_of(self.source, split, num)
