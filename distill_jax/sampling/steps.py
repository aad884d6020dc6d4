"""Predictions of a network in each call of its sampler, for strips and moving pictures."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import Prediction
from distill_jax.diffusion.trained import Sampler
from distill_jax.runtime.trees import traced
from distill_jax.sampling.conditioners import Requests
from distill_jax.sampling.student import Student
from distill_jax.typing import Cond, Image, Resized, Time


@traced("sampler")
class Followed(Sampler):
    """A sampler that shows what the denoiser predicts.

    Attributes:
      sampler: the sampler.
      each: called on the host with the times (b,) and the x (b, h, w, c) of every step; calls may
        come in another order.
    """

    sampler: Any
    each: Callable[[Any, Any], None]

    @property
    def num_steps(self) -> Any:
        """The sampler's number of network calls."""
        return self.sampler.num_steps

    @property
    def times(self) -> Any:
        """The sampler's times."""
        return self.sampler.times

    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Resized:
        def predict(z: Image, t: Time, cond: Cond) -> Prediction:
            found = denoiser(z, t, cond)
            io_callback(self.each, None, t, found.x)
            return found

        return self.sampler(key, dataclasses.replace(denoiser, predict=predict), z, cond)


def predictions(
    student: Student,
    key: jax.Array | int,
    num: int,
    label: Requests = None,
    w: float | None = None,
    num_steps: int | None = None,
) -> list[tuple[float, np.ndarray]]:
    """Draws images and returns the time and the predicted images of every step, in order.

    Arguments are those of Student.sample. The last images (num, h, w, c) are the samples. Those of
    a scale-wise student grow.

    Raises:
      ValueError: as Student.sample.
    """
    seen: list[tuple[float, np.ndarray]] = []

    def each(t: Any, x: Any) -> None:
        seen.append((float(t[0]), np.array(x[:num])))

    followed = student.with_sampler(Followed(student.sampler(num_steps), each))
    followed.sample(key, num, label, w).block_until_ready()
    jax.effects_barrier()
    decoded = []
    for t, x in sorted(seen, key=lambda step: -step[0]):
        x = np.asarray(student.codec.decode(jnp.asarray(x)))
        decoded.append((t, np.clip(x, -1.0, 1.0) if student.denoiser.bounded else x))
    return decoded
