"""Sampling of many images in batches, independently of the number of devices."""

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from distill_jax.data.prompts import as_array
from distill_jax.runtime import distributed, heartbeat
from distill_jax.sampling.conditioners import Labels
from distill_jax.sampling.student import Student

PIXELS = 2**18  # Pixels per batch: 256 images of 32x32, 64 of 64x64.
CONDITIONS, EACH = 16, 8  # At most so many conditions are repeated, each so often.


def repeats(asked: np.ndarray | None) -> np.ndarray:
    """Returns conditions of further samples, so that some conditions have several samples.

    There are none if an eighth of the samples repeat a condition. Else EACH samples are added for
    each of CONDITIONS conditions or fewer: at most a quarter of the samples, or those of one.

    Args:
      asked: labels or prompts (n,) of the samples; None if they have neither.
    """
    known = [] if asked is None else [*dict.fromkeys(asked.tolist())]
    if asked is None or 8 * (len(asked) - len(known)) >= len(asked):
        return np.zeros(0, int)
    count = min(CONDITIONS, max(1, len(asked) // (4 * EACH)), len(known))
    chosen = [known[i * len(known) // count] for i in range(count)]
    return np.repeat(np.asarray(chosen, asked.dtype), EACH)


@dataclasses.dataclass(frozen=True)
class Draw:
    """A sampling of `num` images with fixed noise and labels, so that networks compare in pairs.

    Attributes:
      num: number of samples.
      batch: largest batch size; smaller batches are used for large images. Larger batches are
        slower on a CPU, because they exceed its caches.
      seed: seed of the noise.
      label: class of all samples, or of each; None takes the classes in turn.
      prompts: prompts of the samples, for a network with captions.
      each: callback after each batch, with the number of samples drawn so far.
    """

    num: int
    batch: int = 1000
    seed: int = 0
    label: int | np.ndarray | None = None
    prompts: Sequence[str] = ()
    each: Callable[[int], None] = lambda _: None

    def asked(self, student: Student) -> np.ndarray | None:
        """Returns the prompts or labels of the samples; None for a network without either."""
        return as_array(self.prompts) if student.takes_prompts else self.labels(student)

    def labels(self, student: Student) -> np.ndarray | None:
        """Returns the labels of the samples; None for a network without labels."""
        if self.label is not None:
            return np.full(self.num, self.label)
        return Labels(student.manifest.spec).in_turn(self.num)

    def with_repeats(self, student: Student) -> "Draw":
        """Returns the sampling with those of `repeats` after its own samples."""
        asked = self.asked(student)
        more = repeats(asked)
        if asked is None or not len(more):
            return self
        asked = np.concatenate([asked, more])
        if student.takes_prompts:
            return dataclasses.replace(self, num=len(asked), prompts=asked.tolist())
        return dataclasses.replace(self, num=len(asked), label=asked)

    def check_room(self, student: Student) -> None:
        """Raises ValueError if the samples would take more than half of this machine's memory."""
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        size = self.num * math.prod(student.image_shape) * 4
        if size > memory / 2:
            raise ValueError(
                f"{self.num:,} images {student.image_shape} take {size / 1e9:,.1f} GB, which is "
                f"more than half of the {memory / 1e9:,.1f} GB of this machine: draw fewer"
            )

    def batches(
        self,
        student: Student,
        w: float | None,
        num_steps: int | None = None,
        variance: float | None = None,
        start: int = 0,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields samples (n, h, w, c) in batches, each with the number of its first one.

        The first batch is the one that has sample number `start`, so that all batches are the same
        from wherever they start.
        """
        label = self.asked(student)
        if student.takes_prompts and len(self.prompts) != self.num:
            raise ValueError(
                f"{len(self.prompts)} prompts for {self.num:,} samples; expected one for each"
            )
        batch = min(self.batch, max(1, PIXELS // math.prod(student.shape[:2])))
        for first in range(start // batch * batch, self.num, batch):
            part = None if label is None else label[first : first + batch]
            size = min(batch, self.num - first)
            x = student.sample(self.seed, size, part, w, num_steps, variance, first)
            yield first, distributed.allgather(x)
            heartbeat.beat()
            self.each(first + size)

    def __call__(
        self,
        student: Student,
        w: float | None,
        num_steps: int | None = None,
        variance: float | None = None,
    ) -> tuple[np.ndarray, float]:
        """Returns samples (num, h, w, c), and the seconds that drawing them took."""
        self.check_room(student)
        began = time.perf_counter()
        parts = [x for _, x in self.batches(student, w, num_steps, variance)]
        return np.concatenate(parts), time.perf_counter() - began
