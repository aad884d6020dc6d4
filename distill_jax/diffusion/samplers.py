"""Samplers, and the targets of progressive distillation: functions of a denoiser.

A grid of N steps has the times 1, (N - 1)/N, ..., 1/N, 0. N is traced, so one program serves all N.
The last step of every sampler and target, at s = 0, returns x itself and not z_0.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.noise import step_noise
from distill_jax.diffusion.prediction import Prediction
from distill_jax.diffusion.resize import bicubic, width_at
from distill_jax.diffusion.schedule import Schedule, add_noise, expand
from distill_jax.typing import Cond, Image, Resized, Time


def ddim_step(schedule: Schedule, prediction: Prediction, s: Time) -> Image:
    """Returns z_s = alpha_s x + sigma_s eps, and x where s = 0.

    Song et al. (2021, arXiv:2010.02502) with eta = 0; Salimans & Ho (2022), equation 8.
    """
    x, eps = prediction
    z_s = expand(schedule.alpha(s), x) * x + expand(schedule.sigma(s), x) * eps
    return jnp.where(expand(s, x) > 0, z_s, x)


def signal_step(schedule: Schedule, t: Time, s: Time) -> Time:
    """Returns the step size D in [0, 1] of a DDIM step t -> s in BOOT's signal y.

        y_s = y_t + D (x - y_t),   D = -expm1((l_t - l_s) / 2),   l = logsnr

    with y_t = (z_t - sigma_t eps) / alpha_t, eps the initial noise of the path and x the
    denoiser's. D is 1 - (sigma_s alpha_t) / (sigma_t alpha_s); Gu et al. (2023, arXiv:2306.05544)
    use its first order in t - s.
    """
    return -jnp.expm1((schedule.logsnr(t) - schedule.logsnr(s)) / 2)


def ddim_target(schedule: Schedule, x_1: Image, x_2: Image, t: Time, mid: Time, s: Time) -> Image:
    """Returns the x for which one DDIM step t -> s lands where two steps t -> mid -> s land.

        x = c x_1 + (1 - c) x_2,   c = expm1((l_mid - l_t) / 2) / expm1((l_s - l_t) / 2)

    with l = logsnr. x_1 is the teacher's x at (z_t, t), x_2 its x at (z_mid, mid). Salimans & Ho
    (2022), Algorithm 2, in closed form: z_t cancels, and the target lies between the two
    predictions. Both expm1 are multiplied by exp of minus their argument, so that no exponential
    overflows and logsnr = -inf at t = 1 is legal. At s = 0 the sampler returns x itself, so there
    the target is x_2.
    """
    l_t, l_mid, l_s = (schedule.logsnr(time) for time in (t, mid, s))
    c = jnp.exp((l_mid - l_s) / 2) * jnp.expm1((l_t - l_mid) / 2) / jnp.expm1((l_t - l_s) / 2)
    c = expand(jnp.where(s > 0, c, 0.0), x_1)
    return c * x_1 + (1 - c) * x_2


def encode_target(
    schedule: Schedule, first: Prediction, second: Prediction, t: Time, mid: Time, s: Time
) -> Prediction:
    """Returns the prediction whose step t -> s lands where steps t -> mid -> s land, t < mid < s.

        x   = c x_1 + (1 - c) x_2,       c = expm1((l_mid - l_t) / 2) / expm1((l_s - l_t) / 2)
        eps = d eps_1 + (1 - d) eps_2,   d = expm1((l_t - l_mid) / 2) / expm1((l_t - l_s) / 2)

    with l = logsnr, `first` the teacher's prediction at (z_t, t) and `second` at (z_mid, mid).
    Salimans & Ho (2022, arXiv:2202.00512), Algorithm 2, in closed form and with time reversed. For
    a schedule with logsnr(1 - t) = -logsnr(t), d is the weight c of `ddim_target` at 1 - t. Since l
    decreases, no expm1 in c overflows; d is computed as c exp((l_s - l_mid) / 2). logsnr may be
    infinite at both ends.
    """
    l_t, l_mid, l_s = (schedule.logsnr(time) for time in (t, mid, s))
    c = jnp.expm1((l_mid - l_t) / 2) / jnp.expm1((l_s - l_t) / 2)
    d = c * jnp.exp((l_s - l_mid) / 2)
    c, d = expand(c, first.x), expand(d, first.x)
    return Prediction(c * first.x + (1 - c) * second.x, d * first.eps + (1 - d) * second.eps)


def ddim(denoiser: Denoiser, z: Image, cond: Cond, num_steps: jax.Array | int) -> Image:
    """Samples x from noise with DDIM, the deterministic sampler, in num_steps calls.

    Args:
      denoiser: any denoiser, such as a guided or clipped one.
      z: standard normal noise (b, *s); this function multiplies it by sigma(1).
      cond: the conditions of every call.
      num_steps: N >= 1, may be traced.
    """
    return walk(denoiser, _start(denoiser.schedule, z), cond, falling(num_steps), num_steps)


def flow_map(denoiser: Denoiser, z: Image, cond: Cond, num_steps: jax.Array | int) -> Image:
    """Samples x from noise as `ddim` does, and gives each call the end of its step as "target".

    With a network of average velocities a step of any length is exact (Geng et al. 2025,
    arXiv:2505.13447, Algorithm 2).
    """

    def step(denoiser: Denoiser, z: Image, t: Time, s: Time, cond: Cond) -> Image:
        return _ddim(denoiser, z, t, s, {**cond, "target": s})

    return walk(denoiser, _start(denoiser.schedule, z), cond, falling(num_steps), num_steps, step)


def ddim_encode(denoiser: Denoiser, x: Image, cond: Cond, num_steps: jax.Array | int) -> Image:
    """Encodes x into the noise from which `ddim` samples it, in num_steps calls from t = 0 to 1.

        z_s = alpha_s x_hat + sigma_s eps_hat,   s = t + 1 / N,   z_0 := x

    Reverse DDIM, the probability flow run backwards (Song et al. 2021, arXiv:2010.02502, section
    4.3). Its error falls like 1 / N; the error of a distilled encoder need not.

    Nothing is clipped, even if `ddim` is. Clipping x means to compute eps again as
    (z - alpha x) / sigma, and sigma is 4.5e-5 at t = 0 (0 for a flow). An image needs no clipping
    there. At higher times a clipped encoder inverts a clipped sampler slightly better (under 1 dB
    in round trips of digits, 1 to 32 steps). For the same reason the network must predict eps
    accurately at t = 0: see methods.encoder.

    Args:
      denoiser: may be guided, but not clipped; its head's eps must be accurate at t = 0.
      x: clean images in [-1, 1] (b, *s), or latents.
      cond: the conditions of every call.
      num_steps: N >= 1, may be traced.

    Returns:
      z_1 / sigma(1), the noise that `ddim` takes.
    """
    z = walk(denoiser, x, cond, rising(num_steps), num_steps)
    return z / denoiser.schedule.sigma(jnp.ones((), x.dtype))


def walk(
    denoiser: Denoiser,
    z: Image,
    cond: Cond,
    grid: Callable[[Time], tuple[Time, Time]],
    count: jax.Array | int,
    step: Callable[..., Image] | None = None,
) -> Image:
    """Runs `count` deterministic steps from z, with rising or falling times.

    Args:
      denoiser: the denoiser of every step.
      z: the sample at the first time; this function does not multiply it by sigma.
      cond: the conditions of every call.
      grid: maps the number of a step, from 0, one per example, to its times (t, s).
      count: number of steps; may be traced.
      step: (denoiser, z, t, s, cond) -> z_s; None is DDIM.
    """
    step = step or _ddim

    def one(i: jax.Array, z: Image) -> Image:
        return step(denoiser, z, *grid(i * jnp.ones(z.shape[:1], z.dtype)), cond)

    return jax.lax.fori_loop(0, count, one, z)


def _ddim(denoiser: Denoiser, z: Image, t: Time, s: Time, cond: Cond) -> Image:
    """Calls the denoiser at t and takes one DDIM step t -> s."""
    return ddim_step(denoiser.schedule, denoiser(z, t, cond), s)


def falling(
    num_steps: jax.Array | int, start: jax.Array | int | None = None
) -> Callable[[Time], tuple[Time, Time]]:
    """Returns the grid of steps of length 1 / N down from t = start / N, by default from 1."""
    first = num_steps if start is None else start
    return lambda i: ((first - i) / num_steps, (first - i - 1) / num_steps)


def rising(num_steps: jax.Array | int) -> Callable[[Time], tuple[Time, Time]]:
    """Returns the grid of steps of length 1 / N up from t = 0."""
    return lambda i: (i / num_steps, (i + 1) / num_steps)


def ancestral(
    key: jax.Array,
    denoiser: Denoiser,
    z: Image,
    cond: Cond,
    num_steps: jax.Array | int,
    variance: jax.Array | float = 0.0,
) -> Image:
    """Samples x with DDPM's stochastic sampler, z_s ~ q(z_s | z_t, x), in num_steps calls.

        mean = R (alpha_s / alpha_t) z_t + (1 - R) alpha_s x,   R = exp(l_t - l_s),
        log variance = log(1 - R) + (1 - f) log sigma_s^2 + f log sigma_t^2

    Ho et al. (2020, arXiv:2006.11239), in the logsnr form of Salimans & Ho (2022), appendix. The
    factor of z_t is written (alpha_t sigma_s^2) / (alpha_s sigma_t^2), which is finite at
    alpha_t = 0. `variance` is f in [0, 1]. f = 0 ("small") is the exact posterior variance for data
    that are one point, f = 1 ("large") for data that are white noise. The best f lies between and
    depends on num_steps (Nichol & Dhariwal 2021, arXiv:2102.09672, section 3.1).
    """
    schedule = denoiser.schedule

    def step(i: jax.Array, z: Image) -> Image:
        t, s = _times(i, num_steps, z)
        x = denoiser(z, t, cond).x
        one_minus_r = -jnp.expm1(schedule.logsnr(t) - schedule.logsnr(s))
        keep = schedule.alpha(t) * schedule.sigma(s) ** 2 / schedule.sigma(t) ** 2
        mean = (
            expand(keep / schedule.alpha(s), z) * z + expand(one_minus_r * schedule.alpha(s), z) * x
        )
        noise = step_noise(key, i, z)
        level = schedule.sigma(s) ** (1 - variance) * schedule.sigma(t) ** variance
        z_s = mean + expand(jnp.sqrt(one_minus_r) * level, z) * noise
        return jnp.where(expand(s, z) > 0, z_s, x)

    return jax.lax.fori_loop(0, num_steps, step, _start(schedule, z))


def stochastic(
    key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond, num_steps: jax.Array | int
) -> Image:
    """Samples x by DDIM steps of length 2 / N, each followed by noise that goes back 1 / N.

        t -> k = t - 2 / N by DDIM, then k -> u = t - 1 / N by noise:
        z_u = (alpha_u / alpha_k) z_k + sqrt(1 - exp(l_u - l_k)) sigma_u noise

    It makes num_steps calls; the last, at t = 1 / N, is a plain step to x. Meng et al. (2023,
    arXiv:2210.03142), section 3.4. The network must be trained for steps of length 2 / N, see
    methods/stochastic.py.
    """
    schedule = denoiser.schedule

    def step(i: jax.Array, z: Image) -> Image:
        t, u = _times(i, num_steps, z)
        _, k = _times(jnp.minimum(i + 1, num_steps - 1), num_steps, z)
        prediction = denoiser(z, t, cond)
        z_k = ddim_step(schedule, prediction, k)
        noise = step_noise(key, i, z)
        added = -jnp.expm1(schedule.logsnr(u) - schedule.logsnr(k))
        z_u = expand(schedule.alpha(u) / schedule.alpha(k), z) * z_k
        z_u += expand(jnp.sqrt(added) * schedule.sigma(u), z) * noise
        return jnp.where(expand(u, z) > 0, z_u, prediction.x)

    return jax.lax.fori_loop(0, num_steps, step, _start(schedule, z))


def renoise(
    key: jax.Array,
    denoiser: Denoiser,
    eps: Image,
    cond: Cond,
    times: Sequence[float] | jax.Array,
    resolutions: tuple[int, ...] = (),
    stop: jax.Array | int | None = None,
) -> Resized:
    """Samples x with few-step generators: each call denoises the last x after adding new noise.

        x_1 = x(sigma_1 eps, t_1),   x_k = x(alpha_k up(x_{k-1}) + sigma_k noise_k, t_k)

    It makes len(times) calls and returns the last x. `up` enlarges the clean x if step k has a
    higher resolution. Enlarging z_t instead would make its noise correlated and too weak, unlike
    the noise in training (Starodubcev et al. 2026, arXiv:2503.16397, section 3). With one
    resolution it is the sampler of DMD2 and of consistency models.

    With `stop` it returns z, the input of call number `stop` (from 0) on the student's own path:
    the "backward simulation" of Yin et al. (2024, arXiv:2405.14867). That z has no gradient.

    Args:
      key: key of the noise after the first call.
      denoiser: the generator; each call returns its x.
      eps: standard normal noise (b, h, w, c) at full size; the first call takes the corner that has
        its resolution.
      cond: the conditions of every call.
      times: t_1 > t_2 > ... in (0, 1].
      resolutions: heights of the calls, non-decreasing; () for the height of the noise.
      stop: number of calls before z is returned; may be traced if all resolutions are equal. None
        makes all calls and returns the last x.

    Raises:
      ValueError: for a resolution above that of the noise.
    """
    if resolutions and max(resolutions) > eps.shape[1]:
        raise ValueError(
            f"resolutions are {resolutions}, but the noise has {eps.shape[1]} pixels only"
        )
    if resolutions:
        eps = eps[:, : resolutions[0], : width_at(eps, resolutions[0])]
    ends = jnp.concatenate([jnp.asarray(times, eps.dtype), jnp.zeros(1, eps.dtype)])

    def step(i: jax.Array | int, z: Image) -> Resized:
        t, s = (jnp.broadcast_to(ends[j], z.shape[:1]) for j in (i, i + 1))
        x = denoiser(z, t, cond).x
        if isinstance(i, int) and i + 1 == len(times):
            return x
        if resolutions:
            x = bicubic(x, resolutions[i + 1])
        noise = step_noise(key, i + 1, x)
        noisy = add_noise(denoiser.schedule, x, noise, s)
        return jax.lax.stop_gradient(jnp.where(expand(s, x) > 0, noisy, x))

    z = denoiser.schedule.sigma(ends[0]) * eps
    stop = len(times) if stop is None else stop
    if not resolutions and not (isinstance(stop, int) and stop < 2):
        return jax.lax.fori_loop(0, stop, step, z)
    for i in range(stop):
        z = step(i, z)
    return z


def _start(schedule: Schedule, z: Image) -> Image:
    """Scales standard normal noise to the noise level of t = 1."""
    return schedule.sigma(jnp.ones((), z.dtype)) * z


def _times(i: jax.Array, num_steps: jax.Array | int, z: Image) -> tuple[Time, Time]:
    """Returns t and s of step i = 0 .. N - 1, falling from t = 1, one per example."""
    return falling(num_steps)(i * jnp.ones(z.shape[:1], z.dtype))
