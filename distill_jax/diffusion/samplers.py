"""Samplers and the progressive target: functions of a denoiser.

A grid of N steps has the times 1, (N - 1)/N, ..., 1/N, 0. N is traced, so one program serves all.
At s = 0 a step returns x itself, not z_0: the last step of every sampler, and of every target.
"""

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import Prediction
from distill_jax.diffusion.resize import bicubic, width_at
from distill_jax.diffusion.schedule import Schedule, add_noise, expand
from distill_jax.typing import Cond, Image, Resized, Time


def ddim_step(schedule: Schedule, prediction: Prediction, s: Time) -> Image:
    """z_s = alpha_s x + sigma_s eps, and x where s = 0.

    Song et al. (2021, arXiv:2010.02502) with eta = 0; Salimans & Ho (2022), equation 8.
    """
    x, eps = prediction
    z_s = expand(schedule.alpha(s), x) * x + expand(schedule.sigma(s), x) * eps
    return jnp.where(expand(s, x) > 0, z_s, x)


def signal_step(schedule: Schedule, t: Time, s: Time) -> Time:
    """D in [0, 1] of a DDIM step t -> s in the signal y_t = (z_t - sigma_t eps) / alpha_t.

        y_s = y_t + D (x - y_t),   D = -expm1((l_t - l_s) / 2),   l = logsnr

    eps is the noise that the path began with, x the denoiser's. D is 1 - (sigma_s alpha_t) /
    (sigma_t alpha_s); Gu et al. (2023, arXiv:2306.05544) have its first order in t - s.
    """
    return -jnp.expm1((schedule.logsnr(t) - schedule.logsnr(s)) / 2)


def ddim_target(schedule: Schedule, x_1: Image, x_2: Image, t: Time, mid: Time, s: Time) -> Image:
    """The x for which one DDIM step t -> s lands where two steps t -> mid -> s land.

        x = c x_1 + (1 - c) x_2,   c = expm1((l_mid - l_t) / 2) / expm1((l_s - l_t) / 2)

    with l = logsnr. x_1 is the teacher's x at (z_t, t), x_2 at (z_mid, mid). Salimans & Ho (2022),
    Algorithm 2, in closed form: z_t cancels, and the target lies between the two predictions. Both
    expm1 are multiplied by exp of minus their argument, so that no exponential overflows and
    logsnr = -inf at t = 1 is legal. At s = 0 the sampler returns x itself, so there the target is
    x_2.
    """
    l_t, l_mid, l_s = (schedule.logsnr(time) for time in (t, mid, s))
    c = jnp.exp((l_mid - l_s) / 2) * jnp.expm1((l_t - l_mid) / 2) / jnp.expm1((l_t - l_s) / 2)
    c = expand(jnp.where(s > 0, c, 0.0), x_1)
    return c * x_1 + (1 - c) * x_2


def ddim(denoiser: Denoiser, z: Image, cond: Cond, num_steps: jax.Array | int) -> Image:
    """The deterministic sampler: num_steps calls from z_1 to x.

    Args:
      denoiser: guided, clipped or neither.
      z: standard normal noise (b, *s); sigma(1) is multiplied on here.
      cond: the conditions of every call.
      num_steps: N >= 1, may be traced.
    """

    def step(i: jax.Array, z: Image) -> Image:
        t, s = _grid(i, num_steps, z)
        return ddim_step(denoiser.schedule, denoiser(z, t, cond), s)

    return jax.lax.fori_loop(0, num_steps, step, _start(denoiser.schedule, z))


def ancestral(
    key: jax.Array,
    denoiser: Denoiser,
    z: Image,
    cond: Cond,
    num_steps: jax.Array | int,
    variance: jax.Array | float = 0.0,
) -> Image:
    """The stochastic sampler of DDPM: z_s ~ q(z_s | z_t, x), num_steps calls.

        mean = R (alpha_s / alpha_t) z_t + (1 - R) alpha_s x,   R = exp(l_t - l_s),
        log variance = log(1 - R) + (1 - f) log sigma_s^2 + f log sigma_t^2

    Ho et al. (2020, arXiv:2006.11239); logsnr form of Salimans & Ho (2022), appendix. The factor
    of z_t is written (alpha_t sigma_s^2) / (alpha_s sigma_t^2), which is finite at alpha_t = 0.
    `variance` is f in [0, 1]: 0 is the exact posterior for data that are one point (the "small"
    variance), 1 for data that are white noise ("large"); the best lies between and depends on
    num_steps (Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.1).
    """
    schedule = denoiser.schedule

    def step(i: jax.Array, z: Image) -> Image:
        t, s = _grid(i, num_steps, z)
        x = denoiser(z, t, cond).x
        one_minus_r = -jnp.expm1(schedule.logsnr(t) - schedule.logsnr(s))
        keep = schedule.alpha(t) * schedule.sigma(s) ** 2 / schedule.sigma(t) ** 2
        mean = (
            expand(keep / schedule.alpha(s), z) * z + expand(one_minus_r * schedule.alpha(s), z) * x
        )
        noise = jax.random.normal(jax.random.fold_in(key, i), z.shape, z.dtype)
        level = schedule.sigma(s) ** (1 - variance) * schedule.sigma(t) ** variance
        z_s = mean + expand(jnp.sqrt(one_minus_r) * level, z) * noise
        return jnp.where(expand(s, z) > 0, z_s, x)

    return jax.lax.fori_loop(0, num_steps, step, _start(schedule, z))


def stochastic(
    key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond, num_steps: jax.Array | int
) -> Image:
    """Steps of double length, each diffused half the way back: num_steps calls.

        t -> k = t - 2 / N by DDIM, then k -> u = t - 1 / N by noise:
        z_u = (alpha_u / alpha_k) z_k + sqrt(1 - exp(l_u - l_k)) sigma_u noise

    The last call, at t = 1 / N, is a plain step to x. Meng et al. (2023, arXiv:2210.03142), section
    3.4. The network must know steps of length 2 / N: methods/stochastic.py trains one.
    """
    schedule = denoiser.schedule

    def step(i: jax.Array, z: Image) -> Image:
        t, u = _grid(i, num_steps, z)
        _, k = _grid(jnp.minimum(i + 1, num_steps - 1), num_steps, z)
        prediction = denoiser(z, t, cond)
        z_k = ddim_step(schedule, prediction, k)
        noise = jax.random.normal(jax.random.fold_in(key, i), z.shape, z.dtype)
        added = -jnp.expm1(schedule.logsnr(u) - schedule.logsnr(k))
        z_u = expand(schedule.alpha(u) / schedule.alpha(k), z) * z_k
        z_u += expand(jnp.sqrt(added) * schedule.sigma(u), z) * noise
        return jnp.where(expand(u, z) > 0, z_u, prediction.x)

    return jax.lax.fori_loop(0, num_steps, step, _start(schedule, z))


def renoise(
    key: jax.Array,
    denoiser: Denoiser,
    z: Image,
    cond: Cond,
    times: tuple[float, ...],
    sides: tuple[int, ...] = (),
) -> Resized:
    """The few-step sampler of one-call generators: x, noise again, x again; len(times) calls.

        x_1 = x(sigma_1 z, t_1),   x_k = x(alpha_k up(x_{k-1}) + sigma_k noise_k, t_k)

    The last x is returned. `up` enlarges the clean x, where step k has a larger side: an enlarged
    z_t would have noise that is correlated and too weak, which no network has seen (Starodubcev et
    al. 2026, arXiv:2503.16397, section 3). With one side it is the sampler of DMD2 and of
    consistency models.

    Args:
      key: of the noise after the first.
      denoiser: its x is what a call generates.
      z: standard normal noise (b, h, w, c) at full size; the first step sees the corner of its
        side.
      cond: the conditions of every call.
      times: t_1 > t_2 > ... in (0, 1].
      sides: heights of the steps, non-decreasing; () for z's own.

    Raises:
      ValueError: for a side beyond z's.
    """
    if sides and max(sides) > z.shape[1]:
        raise ValueError(f"sides are {sides}, but the noise has {z.shape[1]} pixels only")
    if sides:
        z = z[:, : sides[0], : width_at(z, sides[0])]
    x = None
    for k, time in enumerate(times):
        t = jnp.full(z.shape[:1], time, z.dtype)
        if x is None:
            z = expand(denoiser.schedule.sigma(t), z) * z
        else:
            x = bicubic(x, sides[k]) if sides else x
            noise = jax.random.normal(jax.random.fold_in(key, k), x.shape, x.dtype)
            z = add_noise(denoiser.schedule, x, noise, t)
        x = denoiser(z, t, cond).x
    return x


def _start(schedule: Schedule, z: Image) -> Image:
    """Noise at the level of t = 1."""
    return schedule.sigma(jnp.ones((), z.dtype)) * z


def _grid(i: jax.Array, num_steps: jax.Array | int, z: Image) -> tuple[Time, Time]:
    """t and s of step i = 0 .. N - 1, from t = 1 down, one per example."""
    left = (num_steps - i) * jnp.ones(z.shape[:1], z.dtype)
    return left / num_steps, (left - 1) / num_steps
