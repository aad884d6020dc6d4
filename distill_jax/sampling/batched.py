"""Many samples of a network, in batches: the same ones whatever the devices."""

import dataclasses
import math
import time
from collections.abc import Callable

import jax
import numpy as np

from distill_jax.runtime import distributed
from distill_jax.sampling.student import Student

PIXELS = 2**18  # Drawn at once: 256 of 32x32, 64 of 64x64.


@dataclasses.dataclass(frozen=True)
class Draw:
    """The same noise, and the classes in turn, for every network: samples compare in pairs.

    Attributes:
      num: samples, drawn in batches of at most `batch`, fewer where images are large.
      batch: larger ones are slower on a CPU, whose caches they leave.
      seed: of the noise.
      label: the class of all; None takes the classes in turn.
      each: called after each batch with the number of samples that are drawn.
    """

    num: int
    batch: int = 1000
    seed: int = 0
    label: int | None = None
    each: Callable[[int], None] = lambda _: None

    def labels(self, student: Student) -> np.ndarray | None:
        """What the samples are to show, None for a network without labels."""
        if self.label is not None:
            return np.full(self.num, self.label)
        return student.conditioner.in_turn(self.num)

    def __call__(
        self,
        student: Student,
        w: float | None,
        num_steps: int | None = None,
        variance: float | None = None,
    ) -> tuple[np.ndarray, float]:
        """Samples (num, h, w, c), and the seconds they took."""
        label, parts = self.labels(student), []
        batch = min(self.batch, max(1, PIXELS // math.prod(student.shape[:2])))
        began = time.perf_counter()
        for start in range(0, self.num, batch):
            part = None if label is None else label[start : start + batch]
            size = min(batch, self.num - start)
            key = jax.random.key(self.seed)
            x = student.sample(key, size, part, w, num_steps, variance, start)
            parts.append(distributed.allgather(x))
            self.each(start + size)
        return np.concatenate(parts), time.perf_counter() - began
