"""Laws by which losses draw noise levels, and levels as times of any schedule.

A level is sigma / alpha = exp(-logsnr / 2), the noise level of EDM (Karras et al. 2022,
arXiv:2206.00364): it means the same for every schedule, as a time does not.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from distill_jax.diffusion.schedule import Schedule
from distill_jax.typing import Time

Law = Callable[[jax.Array, Schedule, tuple[int, ...], float, float], Time]

RHO = 7.0  # Karras et al. (2022), Table 1.
LOG_MEAN, LOG_STD = -1.2, 1.2  # The same, for training.


def level_of(schedule: Schedule, t: jax.Array) -> jax.Array:
    """sigma(t) / alpha(t), > 0."""
    return jnp.exp(-schedule.logsnr(t) / 2)


def time_of(schedule: Schedule, level: jax.Array | float) -> jax.Array:
    """The t whose level this is; 0 or 1 for a level that the schedule does not reach."""
    return jnp.clip(schedule.time(-2 * jnp.log(jnp.asarray(level))), 0.0, 1.0)


def uniform(
    key: jax.Array, schedule: Schedule, shape: tuple[int, ...], low: float, high: float
) -> Time:
    """t ~ U between the times of the levels low and high.

    SiD-LSG (arXiv:2406.01561) draws the indices 20 .. 979 of Stable Diffusion's 1000, which are the
    levels 0.138 .. 12.97.
    """
    least, largest = time_of(schedule, low), time_of(schedule, high)
    return least + (largest - least) * jax.random.uniform(key, shape)


def karras(
    key: jax.Array, schedule: Schedule, shape: tuple[int, ...], low: float, high: float
) -> Time:
    """level^(1/7) ~ U between those of low and high: EDM's sampling grid, drawn from.

    SiD (arXiv:2404.04057) draws the noisier 800 of 1000 points between 80 and 0.002 away from 80,
    which are the levels 0.002 .. 24.41.
    """
    least, largest = low ** (1 / RHO), high ** (1 / RHO)
    return time_of(schedule, (least + (largest - least) * jax.random.uniform(key, shape)) ** RHO)


def lognormal(
    key: jax.Array, schedule: Schedule, shape: tuple[int, ...], low: float, high: float
) -> Time:
    """log level ~ N(-1.2, 1.2^2), clipped to low .. high: EDM's law of training."""
    level = jnp.exp(LOG_MEAN + LOG_STD * jax.random.normal(key, shape))
    return time_of(schedule, jnp.clip(level, low, high))


LEVELS: dict[str, Law] = {"uniform": uniform, "karras": karras, "lognormal": lognormal}
