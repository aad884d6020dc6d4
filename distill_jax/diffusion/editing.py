"""Editing of images with DDIM: functions of a denoiser, an image and noise.

The grid of times and the traced number of steps are the same as in samplers.ddim.
"""

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.samplers import ddim_step, falling, walk
from distill_jax.diffusion.schedule import add_noise
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
    return walk(denoiser, z, cond, falling(num_steps, start), start)


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
