"""Distributions of noise levels for losses, and the conversion between levels and times.

A noise level is sigma / alpha = exp(-logsnr / 2) (Karras et al. 2022, arXiv:2206.00364). Unlike a
time, it means the same for every schedule.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.schedule import LinearBeta, Schedule
from distill_jax.typing import Time

NoiseDistribution = Callable[[jax.Array, Schedule, tuple[int, ...], float, float], Time]

RHO = 7.0  # Karras et al. (2022), Table 1.
# Mean and standard deviation of the logarithm of levels in training.
EDM = (-1.2, 1.2)  # Karras et al. (2022), Table 1.
ICT = (-1.1, 2.0)  # Song & Dhariwal (2023, arXiv:2310.14189), Table 1; Geng et al. (2024) too.
SCM = (-1.0, 1.4)  # Lu & Song (2024, arXiv:2410.11081), for CIFAR-10 and ImageNet 64.
MEANFLOW = (-0.4, 1.0)  # Geng et al. (2025, arXiv:2505.13447), for ImageNet 256.
STABLE_DIFFUSION = LinearBeta(0.00085, 0.012, num_steps=1000, power=2)
# Times of the 28 Euler steps of Stable Diffusion 3.5: t = 3 u / (1 + 2 u) (shift 3), u in equal
# steps from 1 to the shifted time of 1 / 1000.
SHIFTED_FLOW = np.asarray([3 * u / (1 + 2 * u) for u in np.linspace(1, 0.003 / 1.002, 28)])


def level_of(schedule: Schedule, t: jax.Array) -> jax.Array:
    """Returns the noise level sigma(t) / alpha(t), above 0."""
    return jnp.exp(-schedule.logsnr(t) / 2)


def time_of(schedule: Schedule, level: jax.Array | float) -> jax.Array:
    """Returns the time of a noise level; 0 or 1 for a level outside the schedule."""
    return jnp.clip(schedule.time(-2 * jnp.log(jnp.asarray(level))), 0.0, 1.0)


def uniform(
    key: jax.Array, schedule: Schedule, shape: tuple[int, ...], low: float, high: float
) -> Time:
    """Draws t uniformly between the times of the levels low and high; depends on the schedule."""
    least, largest = time_of(schedule, low), time_of(schedule, high)
    return least + (largest - least) * jax.random.uniform(key, shape)


def karras(
    key: jax.Array, schedule: Schedule, shape: tuple[int, ...], low: float, high: float
) -> Time:
    """Draws level^(1/7) uniformly between low^(1/7) and high^(1/7): EDM's sampling grid.

    SiD (arXiv:2404.04057) draws from the less noisy 80 % of the grid between 0.002 and 80, which
    are the levels 0.002 .. 24.41.
    """
    least, largest = low ** (1 / RHO), high ** (1 / RHO)
    return time_of(schedule, (least + (largest - least) * jax.random.uniform(key, shape)) ** RHO)


def lognormal(mean: float, std: float) -> NoiseDistribution:
    """Returns the distribution log level ~ N(mean, std^2), clipped to low .. high."""

    def draw(
        key: jax.Array, schedule: Schedule, shape: tuple[int, ...], low: float, high: float
    ) -> Time:
        level = jnp.exp(mean + std * jax.random.normal(key, shape))
        return time_of(schedule, jnp.clip(level, low, high))

    draw.__doc__ = f"Draws log level ~ N({mean:g}, {std:g}^2), clipped to low .. high."
    return draw


def scaled_linear(
    key: jax.Array, schedule: Schedule, shape: tuple[int, ...], low: float, high: float
) -> Time:
    """Draws uniformly among the noise levels of Stable Diffusion's steps between low and high.

    SiD-LSG (arXiv:2406.01561) draws the indices 20 .. 979 of the 1000 steps, which are the levels
    0.138 .. 12.97. Here the index is a real number, and the levels have the same quantiles.
    """
    t = uniform(key, STABLE_DIFFUSION, shape, low, high)
    return time_of(schedule, level_of(STABLE_DIFFUSION, t))


def shifted_flow(
    key: jax.Array, schedule: Schedule, shape: tuple[int, ...], low: float, high: float
) -> Time:
    """Draws uniformly among the 28 levels of Stable Diffusion 3.5's grid between low and high.

    Both ends are rounded to the nearest of the 28 and may be drawn. SwD (arXiv:2503.16397) draws
    the indices 0 .. 27, 12 .. 27 or 18 .. 27: the levels from 0.009 to infinity (index 0, noise
    without signal), to 3.77 or to 1.51. Every number above 160 is rounded to infinity.
    """
    last, first = (np.argmin(np.abs(SHIFTED_FLOW - level / (1 + level))) for level in (low, high))
    index = jax.random.randint(key, shape, first, last + 1)
    with np.errstate(divide="ignore"):
        levels = jnp.asarray(SHIFTED_FLOW / (1 - SHIFTED_FLOW))
    return time_of(schedule, levels)[index]


NOISE_LEVELS: dict[str, NoiseDistribution] = {
    "uniform": uniform,
    "karras": karras,
    "lognormal": lognormal(*EDM),
    "lognormal_ict": lognormal(*ICT),
    "lognormal_scm": lognormal(*SCM),
    "lognormal_meanflow": lognormal(*MEANFLOW),
    "scaled_linear": scaled_linear,
    "shifted_flow": shifted_flow,
}
