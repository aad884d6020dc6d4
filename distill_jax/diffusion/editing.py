"""Editing of images: functions of a denoiser, an image and noise.

The grid of times and the traced number of steps are the same as in samplers.ddim; `renoise` takes
the times of samplers.renoise.
"""

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.noise import step_noise
from distill_jax.diffusion.samplers import ddim_step, falling, rising, walk
from distill_jax.diffusion.schedule import add_noise, expand
from distill_jax.typing import Cond, Image, Time

Count = jax.Array | int


def sdedit(
    denoiser: Denoiser, x: Image, eps: Image, cond: Cond, num_steps: Count, start: Count
) -> Image:
    """Samples from z_t = alpha_t x + sigma_t eps at t = start / num_steps down to 0 with DDIM.

    SDEdit (Meng et al. 2022, arXiv:2108.01073), there with a stochastic sampler. With a distilled
    network it is the image-to-image translation of Meng et al. (2023, arXiv:2210.03142).

    Args:
      denoiser: any denoiser, such as a guided or clipped one.
      x: images to start from (b, *s).
      eps: standard normal noise of the shape of x.
      cond: conditions of the edited images.
      num_steps: N of the sampler's grid.
      start: network calls, 1 to N; few calls keep more of x, N calls keep nothing of it.
    """
    z = add_noise(denoiser.schedule, x, eps, _time(start, num_steps, x))
    return resume(denoiser, z, cond, num_steps, start)


def encode(denoiser: Denoiser, x: Image, cond: Cond, num_steps: Count, stop: Count) -> Image:
    """Returns z_t at t = stop / num_steps on the path of reverse DDIM from x, see ddim_encode."""
    return walk(denoiser, x, cond, rising(num_steps), stop)


def resume(denoiser: Denoiser, x: Image, cond: Cond, num_steps: Count, start: Count) -> Image:
    """Samples from a given x = z_t at t = start / num_steps down to 0 with DDIM."""
    return walk(denoiser, x, cond, falling(num_steps, start), start)


def renoise(
    key: jax.Array,
    denoiser: Denoiser,
    x: Image,
    mask: jax.Array,
    eps: Image,
    cond: Cond,
    times: jax.Array,
) -> Image:
    """Edits with a generator of few steps: samplers.renoise, but from x, and with a known part.

        z_t = alpha_t x + sigma_t eps at the first t
        y = mask x(z_t, t) + (1 - mask) x,   z_s = alpha_s y + sigma_s noise

    With mask = 1 it is SDEdit; else it is inpainting, with x = 0 where mask is 1.

    Args:
      key: key of the noise after the first call, one or one per image.
      denoiser: the generator.
      x: images (b, *s).
      mask: 0 or 1, broadcasts against x.
      eps: standard normal noise of the shape of x.
      cond: the conditions of every call.
      times: times of the calls (calls,), falling.
    """
    schedule = denoiser.schedule
    ends = jnp.concatenate([times, jnp.zeros(1, times.dtype)])

    def step(i: jax.Array, z: Image) -> Image:
        t, s = (jnp.broadcast_to(ends[j], z.shape[:1]) for j in (i, i + 1))
        y = jnp.where(mask > 0, denoiser(z, t, cond).x, x)
        noisy = add_noise(schedule, y, step_noise(key, i + 1, y), s)
        return jnp.where(expand(s, y) > 0, noisy, y)

    z = add_noise(schedule, x, eps, jnp.broadcast_to(ends[0], x.shape[:1]))
    y = jax.lax.fori_loop(0, len(times), step, z)
    return jnp.clip(y, -1.0, 1.0) if denoiser.bounded else y


def inpaint(
    denoiser: Denoiser, x: Image, mask: jax.Array, eps: Image, cond: Cond, num_steps: Count
) -> Image:
    """Samples an image where mask is 1 and keeps x where mask is 0.

        z_s <- mask z_s + (1 - mask) (alpha_s x + sigma_s eps)   at t = 1 and after each step

    Replacement: Song et al. (2021, arXiv:2011.13456), section 5; RePaint (Lugmayr et al. 2022,
    arXiv:2201.09865) adds resampling. Replacement works with any sampler, but the known part is
    only pasted and does not condition the network. Meng et al. (2023, arXiv:2210.03142) instead
    distil a network that takes mask and known part as inputs. All steps use one eps, so the known
    part follows its own deterministic path.

    Args:
      denoiser: any denoiser, such as a guided or clipped one.
      x: images (b, *s); values where mask is 1 do not matter.
      mask: 0 or 1, broadcasts against x.
      eps: standard normal noise of the shape of x.
      cond: the conditions of every call.
      num_steps: N >= 1.
    """
    schedule = denoiser.schedule

    def known(z: Image, s: Time) -> Image:
        return jnp.where(mask > 0, z, add_noise(schedule, x, eps, s))

    def step(denoiser: Denoiser, z: Image, t: Time, s: Time, cond: Cond) -> Image:
        return known(ddim_step(schedule, denoiser(z, t, cond), s), s)

    one = _time(num_steps, num_steps, x)
    z = known(schedule.sigma(one[0]) * eps, one)
    z = walk(denoiser, z, cond, falling(num_steps), num_steps, step)
    return jnp.where(mask > 0, z, x)


def _time(i: Count, num_steps: Count, z: Image) -> Time:
    """Returns t = i / N, one per example."""
    return i * jnp.ones(z.shape[:1], z.dtype) / num_steps
