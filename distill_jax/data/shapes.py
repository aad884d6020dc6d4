"""The shapes dataset: captioned scenes of coloured shapes, drawn by the package; see scenes."""

import functools
from typing import Annotated

import numpy as np

from distill_jax.data import scenes
from distill_jax.data.arrays import Arrays
from distill_jax.data.base import Source
from distill_jax.runtime.options import whole

SINGLES = 0.25  # Share of pictures with one object.


def shapes(
    count: Annotated[int, whole(64, high=10_000_000)] = 30_000,
    tests: Annotated[int, whole(64, high=1_000_000)] = 3_000,
) -> Arrays:
    """Draws captioned pictures, uint8 (16, 16, 3), without the pairs of scenes.HELD_OUT.

    Args:
      count: number of training pictures.
      tests: number of test pictures.
    """
    (train, read), (test, asked) = _drawn(count, 0), _drawn(tests, 1)
    return Arrays(train, test, num_classes=0, num_labels=1, texts={"train": read, "test": asked})


@functools.cache
def seen() -> tuple[scenes.Scene, ...]:
    """Returns the 1,348 scenes without pairs that are held out, those of one object first."""
    return tuple(scene for scene in scenes.all_scenes() if not scene.held_out)


@functools.lru_cache(maxsize=4)
def _drawn(count: int, seed: int) -> tuple[Source, tuple[str, ...]]:
    """Returns pictures of random scenes, and their captions."""
    rng, known = np.random.default_rng(seed), seen()
    singles = sum(len(scene.objects) == 1 for scene in known)
    one, two = rng.integers(singles, size=count), rng.integers(singles, len(known), size=count)
    chosen = [known[i] for i in np.where(rng.random(count) < SINGLES, one, two)]
    parts = [scenes.draw(chosen[i : i + 1000], rng) for i in range(0, count, 1000)]
    source = Source(np.concatenate(parts), np.zeros(count, np.int32))
    return source, tuple(scene.caption for scene in chosen)
