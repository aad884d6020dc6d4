"""Masks for the training of networks that inpaint, and the dataset that draws them."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import PIL.Image
import PIL.ImageDraw

from distill_jax.data.base import (
    Dataset,
    Encodable,
    Examples,
    Rows,
    Source,
    has_images,
)
from distill_jax.data.wrapper import Wrapper
from distill_jax.diffusion.inpainting import masked, with_inpainting
from distill_jax.diffusion.pixels import normalise
from distill_jax.diffusion.spec import INPAINT, DataSpec
from distill_jax.runtime.options import number, option
from distill_jax.runtime.registry import EVERYTHING, build

STREAM = 2  # Tells the random numbers of masks from others of the same example.
BOX, STROKE, WIDTH = (0.12, 0.6), (0.04, 0.8), (0.02, 0.4)  # Sides and lengths, as shares.


@runtime_checkable
class Masks(Protocol):
    """A distribution of masks."""

    def __call__(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """Returns a mask (height, width): True where the image is new."""
        ...


@dataclasses.dataclass(frozen=True)
class RandomMasks:
    """Masks of rectangles or of thick strokes, and masks of whole images.

    Sizes and numbers are about those of LaMa (Suvorov et al. 2022, arXiv:2109.07161), whose
    strategy the inpainting networks of Stable Diffusion were trained with. A quarter of their
    images was masked as a whole.

    Attributes:
      whole: share of images that are masked as a whole.
      boxes: share of the others that have rectangles; the rest has strokes.
    """

    whole: float = option(number(0, 1), 0.25)
    boxes: float = option(number(0, 1), 0.5)

    def __call__(self, rng: np.random.Generator, height: int, width: int) -> np.ndarray:
        """Returns a mask; see Masks."""
        kind, other = rng.random(2)
        if kind < self.whole:
            return np.ones((height, width), bool)
        picture = PIL.Image.new("1", (width, height))
        draw, size = PIL.ImageDraw.Draw(picture), np.array([width, height])
        for _ in range(rng.integers(1, 4 if other < self.boxes else 6)):
            (_boxes if other < self.boxes else _strokes)(draw, rng, size)
        return np.array(picture)


def _boxes(draw: PIL.ImageDraw.ImageDraw, rng: np.random.Generator, size: np.ndarray) -> None:
    """Draws a rectangle inside the picture."""
    sides = np.maximum(1, rng.uniform(*BOX, 2) * size).astype(int)
    first = rng.integers(0, size - sides + 1)
    draw.rectangle([*first.tolist(), *(first + sides - 1).tolist()], fill=1)


def _strokes(draw: PIL.ImageDraw.ImageDraw, rng: np.random.Generator, size: np.ndarray) -> None:
    """Draws a broken line with round ends that starts inside the picture."""
    x, y = rng.uniform(0, size)
    width = rng.uniform(*WIDTH) * size.min()
    points = [(x, y)]
    for _ in range(rng.integers(1, 6)):
        angle, length = rng.uniform(0, 2 * math.pi), rng.uniform(*STROKE) * size.min()
        x, y = np.clip((x + length * np.cos(angle), y + length * np.sin(angle)), 0, size - 1)
        points.append((x, y))
    points = [(float(x), float(y)) for x, y in points]
    draw.line(points, fill=1, width=max(1, round(width)))
    for x, y in points:
        draw.ellipse([x - width / 2, y - width / 2, x + width / 2, y + width / 2], fill=1)


# Distributions that `config.masks` may name.
MASKS = {"random": RandomMasks}


def masks_of(options: Mapping[str, Any]) -> Masks | None:
    """Returns the distribution that `config.masks` names; None for {}."""
    if not options:
        return None
    made: Masks = build(MASKS, "distribution of masks", options, allow=EVERYTHING, makes=Masks)
    return made


@dataclasses.dataclass(frozen=True, eq=False)
class Masked(Wrapper):
    """A dataset whose batches have the condition INPAINT, in pixels; see diffusion.inpainting.

    A mask is a function of the seed and the number of the example.

    Attributes:
      source: dataset of images, or of other arrays in their place; see Encodable.with_train.
      masks: distribution of the masks.
      pixels: dataset of the images, if `source` has other arrays.
    """

    source: Any
    masks: Masks
    pixels: Dataset | None = None

    @property
    def spec(self) -> DataSpec:
        return with_inpainting((self.pixels or self.source).spec)

    @property
    def null(self) -> Mapping[str, np.ndarray]:
        return self.source.null

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        drawn = self.source.batches(seed, start, size, part)
        pixels = self.pixels and self.pixels.batches(seed, start, size, part)
        for rows in drawn:
            images = next(pixels).x if pixels else rows.x
            assert images is not None  # See with_masks.
            x = normalise(images)
            rngs = (np.random.default_rng((seed, int(i), STREAM)) for i in rows.index)
            mask = np.stack([self.masks(rng, *x.shape[1:3]) for rng in rngs])
            yield rows._replace(cond={**rows.cond, INPAINT: masked(x, mask[..., None])})

    def without_images(self) -> Dataset:
        return self.source.without_images()


class MaskedEncodable(Masked):
    """A Masked dataset whose training images have numbers; see Encodable."""

    @property
    def flip(self) -> bool:
        return self.source.flip

    @property
    def num_examples(self) -> int:
        return self.source.num_examples

    def examples(self, rows: np.ndarray) -> Source:
        return self.source.examples(rows)

    def with_train(self, train: Examples) -> Dataset:
        return Masked(self.source.with_train(train), self.masks, self.source)


def with_masks(source: Dataset, masks: Masks) -> Masked:
    """Returns the dataset with the condition INPAINT.

    Raises:
      ValueError: for data without images.
    """
    if not has_images(source):
        raise ValueError("config.masks needs images, and the data have prompts only; leave it out")
    return (MaskedEncodable if isinstance(source, Encodable) else Masked)(source, masks)
