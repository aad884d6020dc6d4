"""A dataset that encodes the images and captions of another dataset, or reads them encoded."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from distill_jax.data.base import (
    Dataset,
    Encodable,
    Labels,
    Rows,
)
from distill_jax.data.records import Records
from distill_jax.data.wrapper import Wrapper
from distill_jax.diffusion.inpainting import encoded
from distill_jax.diffusion.pixels import normalise
from distill_jax.diffusion.spec import INPAINT, DataSpec, Leaf
from distill_jax.runtime.text import short
from distill_jax.typing import Image, Resized

DRAW = 0x5D  # Tells the noise of latents from other random numbers of an example.


class Cache(NamedTuple):
    """The training images and captions of a dataset, encoded once; see run.cache.

    Attributes:
      latents: records with the fields of `latents_dtype`, by number of the image; None for images
        that are not cached.
      texts: records with the fields of `texts_dtype`; None for data without captions.
      numbers: number of each caption in `texts`.
    """

    latents: Records | None = None
    texts: Records | None = None
    numbers: Mapping[str, int] = {}


def latents_dtype(shape: tuple[int, ...], views: int, dtype: str) -> np.dtype:
    """Returns the dtype of the record of an image: its label, and the latents of its views.

    The views are the image, and its mirror image for datasets that mirror.
    """
    return np.dtype([("label", "<i4"), ("latents", _stored(dtype), (views, *shape))])


def texts_dtype(leaves: Mapping[str, Leaf], dtype: str) -> np.dtype:
    """Returns the dtype of the record of a caption: its conditions by name."""
    kinds = {
        name: dtype if leaf.dtype == "float32" else leaf.dtype for name, leaf in leaves.items()
    }
    return np.dtype([(name, _stored(kinds[name]), leaf.shape) for name, leaf in leaves.items()])


def _stored(dtype: str) -> np.dtype:
    return np.dtype(dtype).newbyteorder("<")


class _Views:
    """Cached latents in the place of images: a row of pixels (1, views, values).

    Each view is a pixel, so that whoever mirrors the image exchanges the two.
    """

    def __init__(self, records: Records):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.integer]:
        record = self._records[index]
        latents: np.ndarray = record["latents"]
        return latents.reshape(1, len(latents), -1), record["label"]


@dataclasses.dataclass(frozen=True, eq=False)
class Encoded(Wrapper):
    """A dataset whose batches are encoded when drawn, or before; `images` returns the pixels.

    Attributes:
      source: dataset of images.
      spec: spec of the latents and encoded captions.
      encode: maps images (b, h, w, c) in [-1, 1] to latents; None for pixels.
      condition: maps captions (b,) to conditions, leaves (b, ...); None for data without captions.
      cache: what is encoded already. Batches are the same with and without it.
      moments: whether `encode` and the cache give the mean and the standard deviation of each
        latent, one after the other on the channels. Batches then have draws, which are new in every
        epoch.
    """

    source: Dataset
    spec: DataSpec
    encode: Callable[[Image], Resized] | None = None
    condition: Callable[[np.ndarray], Mapping[str, np.ndarray]] | None = None
    cache: Cache = Cache()
    moments: bool = False

    @property
    def stored(self) -> tuple[int, ...]:
        """The shape of what a cache keeps of one image."""
        *sides, channels = self.spec.x.shape
        return (*sides, 2 * channels if self.moments else channels)

    @property
    def null(self) -> Mapping[str, np.ndarray]:
        """The null condition; zeros of its shapes before the text encoder is fitted."""
        try:
            return self._conditions(self.source.null)
        except FileNotFoundError:
            null = self.spec.null
            return {name: np.zeros((1, *leaf.shape), leaf.dtype) for name, leaf in null.items()}

    def batches(
        self, seed: int, start: int, size: int, part: tuple[int, int] = (0, 1)
    ) -> Iterator[Rows]:
        source, latents = self.source, self.cache.latents
        if latents is not None and isinstance(source, Encodable):
            source = source.with_train(_Views(latents))
        else:
            latents = None
        for rows in source.batches(seed, start, size, part):
            x = rows.x
            if latents is not None and x is not None:
                x = x[:, 0, 0].reshape(-1, *self.stored).astype(np.float32)
            elif self.encode is not None and x is not None:  # Data-free methods have no images.
                x = np.asarray(self.encode(jnp.asarray(normalise(x))))
            if self.moments and x is not None:
                x = _drawn(x, seed, rows.index)
            yield Rows(rows.index, x, {**self._conditions(rows.cond), **self._masked(rows.cond)})

    def _masked(self, cond: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Returns the condition of networks that inpaint, in latents; no cache has it."""
        found = {name: leaf for name, leaf in cond.items() if name == INPAINT}
        return {name: encoded(x, self._mean) if self.encode else x for name, x in found.items()}

    def _mean(self, images: Image) -> Resized:
        """Returns the mean latents of images."""
        assert self.encode is not None
        return self.encode(images)[..., : self.spec.x.shape[-1]]

    def _conditions(self, cond: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Returns the conditions with encoded captions."""
        texts, numbers = self.cache.texts, self.cache.numbers
        if self.condition is None:
            return cond
        if texts is None:
            return self.condition(cond["caption"])
        if missing := [caption for caption in cond["caption"] if caption not in numbers]:
            raise ValueError(
                f"the data have the caption {short(missing[0])}, which is not in the cache; set "
                "config.cache.path to none, so that captions are encoded when they are drawn"
            )
        found = texts.take([numbers[caption] for caption in cond["caption"]])
        return {name: found[name].astype(leaf.dtype) for name, leaf in self.spec.null.items()}

    def without_images(self) -> Dataset:
        if self.condition is None:
            return Labels(self.spec)
        return dataclasses.replace(self, source=self.source.without_images())


def _drawn(moments: np.ndarray, seed: int, index: np.ndarray) -> np.ndarray:
    """Returns draws of latents, each a function of the seed and the number of its example."""
    mean, std = np.split(moments, 2, axis=-1)
    eps = np.empty_like(mean)
    for row, number in zip(eps, index, strict=True):
        np.random.default_rng((seed, int(number), DRAW)).standard_normal(out=row, dtype=np.float32)
    return mean + std * eps


def all_captions(dataset: Dataset) -> list[str]:
    """Returns the different captions that batches may have, with the null caption, in order."""
    prompts = getattr(dataset.without_images(), "prompts", ())
    return sorted({*dataset.null["caption"], *prompts})
