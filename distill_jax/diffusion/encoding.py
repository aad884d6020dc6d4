"""From an image to noise: the deterministic sampler backwards, and its halving target.

The grid of N steps is the sampler's, walked up: 0, 1/N, ..., (N - 1)/N, 1. Everything here is
finite at both ends of every schedule, so long as the denoiser's own x and eps are.
"""

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import Prediction
from distill_jax.diffusion.samplers import ddim_step
from distill_jax.diffusion.schedule import Schedule, expand
from distill_jax.typing import Cond, Image, Time


def ddim_encode(denoiser: Denoiser, x: Image, cond: Cond, num_steps: jax.Array | int) -> Image:
    """The noise from which `samplers.ddim` comes back to x: num_steps calls, t = 0 up to t = 1.

        z_s = alpha_s x_hat + sigma_s eps_hat,   s = t + 1 / N,   z_0 := x

    Reverse DDIM, the probability flow run backwards (Song et al. 2021, arXiv:2010.02502, section
    4.3). Its error falls like 1 / N; that of a distilled encoder need not.

    Nothing is clipped, though `ddim` may be: to clip x is to compute eps again as
    (z - alpha x) / sigma, and sigma is 4.5e-5 at t = 0 (0 for a flow). An image needs no clipping
    there; further up an encoder that clips is a little nearer to the inverse of a sampler that
    does (under 1 dB in round trips of digits, 1 to 32 steps). For the same reason eps must be the
    network's own: see methods.encoder.

    Args:
      denoiser: guided or not, but not clipped, and with a head whose eps is accurate at t = 0.
      x: clean images in [-1, 1] (b, *s), or latents.
      cond: the conditions of every call.
      num_steps: N >= 1, may be traced.

    Returns:
      z_1 / sigma(1): what `ddim` takes.
    """
    schedule = denoiser.schedule

    def step(i: jax.Array, z: Image) -> Image:
        done = i * jnp.ones(z.shape[:1], z.dtype)
        t, s = done / num_steps, (done + 1) / num_steps
        return ddim_step(schedule, denoiser(z, t, cond), s)

    return jax.lax.fori_loop(0, num_steps, step, x) / schedule.sigma(jnp.ones((), x.dtype))


def encode_target(
    schedule: Schedule, first: Prediction, second: Prediction, t: Time, mid: Time, s: Time
) -> Prediction:
    """The prediction whose one step t -> s lands where two steps t -> mid -> s land, t < mid < s.

        x   = c x_1 + (1 - c) x_2,       c = expm1((l_mid - l_t) / 2) / expm1((l_s - l_t) / 2)
        eps = d eps_1 + (1 - d) eps_2,   d = expm1((l_t - l_mid) / 2) / expm1((l_t - l_s) / 2)

    with l = logsnr, `first` the teacher's prediction at (z_t, t) and `second` at (z_mid, mid).
    Salimans & Ho (2022, arXiv:2202.00512), Algorithm 2, in closed form and with time reversed.
    Where logsnr(1 - t) = -logsnr(t), d is the weight c of the sampler's target at 1 - t. As l
    decreases no expm1 overflows in c, and d = c exp((l_s - l_mid) / 2); logsnr may be infinite at
    both ends.
    """
    l_t, l_mid, l_s = (schedule.logsnr(time) for time in (t, mid, s))
    c = jnp.expm1((l_mid - l_t) / 2) / jnp.expm1((l_s - l_t) / 2)
    d = c * jnp.exp((l_s - l_mid) / 2)
    c, d = expand(c, first.x), expand(d, first.x)
    return Prediction(c * first.x + (1 - c) * second.x, d * first.eps + (1 - d) * second.eps)
