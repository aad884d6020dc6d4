"""EDM's sampler: Heun's method in the noise level, deterministic or with added noise.

Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models,
arXiv:2206.00364.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.noise import step_noise
from distill_jax.diffusion.noise_levels import RHO, level_of, time_of
from distill_jax.diffusion.prediction import Prediction
from distill_jax.diffusion.schedule import expand
from distill_jax.typing import Cond, Image, Time

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # Karras et al. (2022), Table 1: ends of the sampler's grid.


class Churn(NamedTuple):
    """The noise that EDM's stochastic sampler adds: Karras et al. (2022), Algorithm 2.

    Attributes:
      amount: S_churn, the sum over all steps of the relative increase of the noise level; 0 makes
        the sampler deterministic.
      low: S_tmin, the lowest level that is increased.
      high: S_tmax, the highest level that is increased.
      noise: S_noise, standard deviation of the added noise.
    """

    amount: float = 0.0
    low: float = 0.0
    high: float = SIGMA_MAX
    noise: float = 1.0


DETERMINISTIC = Churn()


def heun(
    key: jax.Array,
    denoiser: Denoiser,
    z: Image,
    cond: Cond,
    num_steps: jax.Array | int,
    churn: Churn = DETERMINISTIC,
) -> Image:
    """Samples x with EDM's sampler: Heun's method in the noise level, in 2 N - 1 calls.

        d_1 = eps(y, l_i),   d_2 = eps(y + (l_next - l_i) d_1, l_next),
        y_next = y + (l_next - l_i) (d_1 + d_2) / 2

    with y = z / alpha and the level l = sigma / alpha. Karras et al. (2022, arXiv:2206.00364),
    Algorithm 1, or with `churn` Algorithm 2, for their sigma(t) = t and s(t) = 1. l^(1/7) falls in
    N - 1 equal steps from 80 to 0.002 (equation 5), or between the ends of the schedule that lie
    inside. The step from the last level to 0 is Euler's and returns the network's x. The error is
    of second order. x is not clipped, as in the paper.

    Args:
      key: key of the noise of `churn`.
      denoiser: any denoiser; its head's eps must be accurate at the lowest level.
      z: standard normal noise (b, *s).
      cond: the conditions of every call.
      num_steps: N >= 1, may be traced.
      churn: see Churn; a level is not increased above the schedule's highest.
    """
    schedule, rows = denoiser.schedule, z.shape[:1]
    ends = level_of(schedule, jnp.asarray([1.0, 0.0], z.dtype))
    first, last = jnp.clip(ends, SIGMA_MIN, SIGMA_MAX) ** (1 / RHO)
    gamma = jnp.minimum(churn.amount / num_steps, math.sqrt(2) - 1)

    def time(i: jax.Array) -> Time:
        level = (first + (last - first) * i / jnp.maximum(num_steps - 1, 1)) ** RHO
        return jnp.broadcast_to(time_of(schedule, level), rows)

    def predict(y: Image, t: Time) -> Prediction:
        return denoiser(expand(schedule.alpha(t), y) * y, t, cond)

    def churned(i: jax.Array, y: Image) -> tuple[Image, Time]:
        t = time(i)
        if not churn.amount:
            return y, t
        level = level_of(schedule, t)
        inside = (level >= churn.low) & (level <= churn.high)
        raised = time_of(schedule, level * (1 + jnp.where(inside, gamma, 0.0)))
        t = jnp.maximum(raised, t)
        added = jnp.sqrt(jnp.maximum(level_of(schedule, t) ** 2 - level**2, 0.0))
        return y + expand(churn.noise * added, y) * step_noise(key, i, y), t

    def step(i: jax.Array, y: Image) -> Image:
        y, t = churned(i, y)
        s = time(i + 1)
        length = expand(level_of(schedule, s) - level_of(schedule, t), y)
        eps = predict(y, t).eps
        return y + length * (eps + predict(y + length * eps, s).eps) / 2

    y = first**RHO * z
    last_step = jnp.asarray(num_steps - 1)
    return predict(*churned(last_step, jax.lax.fori_loop(0, last_step, step, y))).x
