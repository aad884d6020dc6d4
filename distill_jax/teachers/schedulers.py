"""Schedulers of diffusers that sample as our students of Stable Diffusion, and how to call them."""

from typing import Any

import jax.numpy as jnp

from distill_jax.diffusion.schedule import SCHEDULES
from distill_jax.diffusion.trained import Ddim, Renoise, Sampler
from distill_jax.models.sd_unet import TIMESTEPS
from distill_jax.runtime.registry import build
from distill_jax.sampling.manifest import Manifest
from distill_jax.teachers.diffusers import POWERS, PREDICTIONS

# LCMScheduler adds a share of z, 0.25 / (scaling k)^2 at index k, to its x: below 1e-8 with this.
SCALING = 1e4
TAKES_W = """\
* The network takes the guidance strength w = guidance_scale - 1 as an input. It was trained with w
  from {low:g} to {high:g}: take a `guidance_scale` from {first:g} to {last:g}. The default of
  diffusers is 7.5.
* A negative prompt has no effect, because the pipeline makes no second call for guidance.
"""
GUIDED = """\
* `guidance_scale` is 1 + w. At 1 there is one call per step; above it the network is guided, with
  two.
"""
FIXED = """\
* `guidance_scale` must be 1: guidance of w = {w:g} is in the weights. A negative prompt has no
  effect.
"""
RENOISED = """\
* `timesteps` must be these, the times of its {steps} calls, between which new noise is added.
* Its first call is on noise of standard deviation {sigma:.6g}, the noise level of that time.
"""


def check_sampler(manifest: Manifest) -> None:
    """Raises ValueError unless a scheduler of diffusers samples as a student of a UNet does."""
    sampler, guidance = manifest.trained.sampler, manifest.trained.guidance
    if manifest.schedule["name"] != "ddpm" or manifest.parameterization not in PREDICTIONS.values():
        heads = ", ".join(sorted(PREDICTIONS.values()))
        raise ValueError(
            f"schedule is {manifest.schedule['name']!r} and parameterization "
            f"{manifest.parameterization!r}; expected 'ddpm' and one of {heads}"
        )
    if manifest.parameterization == "eps" and manifest.schedule.get("zero_snr"):
        raise ValueError(
            "parameterization is 'eps' and zero_snr True; at a signal of zero diffusers divides by "
            "it: expected 'v'"
        )
    if guidance.w_range is None and manifest.trained.all_times:
        raise ValueError(
            "the network takes no guidance strength, and was trained at all times; expected a "
            "student"
        )
    if isinstance(sampler, Renoise):
        _check_calls(sampler, manifest.spec.x.shape[0])
    elif not isinstance(sampler, Ddim) or TIMESTEPS % sampler.num_steps:
        raise ValueError(
            f"the sampler is {type(sampler).__name__} in {sampler.num_steps} steps; the DDIM of "
            "diffusers has its times only in a number of steps that divides "
            f"{TIMESTEPS}, such as 1, 2, 4 or 8"
        )


def _check_calls(sampler: Renoise, side: int) -> None:
    """Raises ValueError unless an LCMScheduler has the calls of a sampler."""
    if set(sampler.resolutions) - {side}:
        raise ValueError(
            f"the sampler has resolutions {sampler.resolutions}; LCMScheduler has one size, {side}"
        )
    for time, index in zip(sampler.times, timesteps(sampler), strict=True):
        if index < 1 or abs(time * TIMESTEPS - 1 - index) > 1e-3:
            raise ValueError(
                f"the sampler has a call at t = {time:g}; diffusers has whole numbers of "
                f"1 / {TIMESTEPS}, from 2 / {TIMESTEPS}"
            )


def timesteps(sampler: Sampler) -> list[int]:
    """Returns the indices of a sampler's times among the noise levels of diffusers."""
    return [round(TIMESTEPS * time) - 1 for time in sampler.times]


def scheduler_config(manifest: Manifest) -> dict[str, Any]:
    """Returns the config of a scheduler whose calls are at our times.

    It is a DDIMScheduler, and an LCMScheduler for a student that adds new noise between its calls.
    """
    names = {power: name for name, power in POWERS.items()}
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    schedule = manifest.schedule
    config = {
        "beta_schedule": names[schedule.get("power", 1)],
        "beta_start": schedule.get("beta_min", 1e-4),
        "beta_end": schedule.get("beta_max", 0.02),
        "num_train_timesteps": TIMESTEPS,
        "prediction_type": predictions[manifest.parameterization],
        "rescale_betas_zero_snr": schedule.get("zero_snr", False),
        "timestep_spacing": "trailing",
        "steps_offset": 1,  # Not read with this spacing; diffusers warns of others.
        "set_alpha_to_one": True,
        "clip_sample": False,
        "thresholding": False,
    }
    if isinstance(manifest.trained.sampler, Renoise):
        # With all noise levels as original steps, any `timesteps` are among them.
        own = {"original_inference_steps": TIMESTEPS, "timestep_scaling": SCALING}
        return {"_class_name": "LCMScheduler", **config, **own}
    return {"_class_name": "DDIMScheduler", **config}


def arguments(manifest: Manifest) -> str:
    """Returns the arguments of a pipeline's call as code: steps and guidance."""
    trained, scale = manifest.trained, 1.0
    if trained.guidance.w_range is not None:  # Take the default of diffusers, or what is nearest.
        low, high = trained.guidance.w_range
        scale = min(max(7.5, 1 + low), 1 + high)
    steps = f"num_inference_steps={trained.num_steps}"
    if isinstance(trained.sampler, Renoise):
        steps = f"timesteps={timesteps(trained.sampler)}"
    return f"{steps}, guidance_scale={scale:g}"


def before(manifest: Manifest) -> str:
    """Returns a line of code before a pipeline's call, "" for none."""
    sigma = _first_sigma(manifest)
    if not isinstance(manifest.trained.sampler, Renoise) or f"{sigma:.6g}" == "1":
        return ""
    return f"pipeline.scheduler.init_noise_sigma = {sigma:.6g}\n"


def _first_sigma(manifest: Manifest) -> float:
    """Returns the noise level of the first call."""
    schedule = build(SCHEDULES, "schedule", manifest.schedule)
    return float(schedule.sigma(jnp.asarray(manifest.trained.sampler.times[0], jnp.float32)))


def notes(manifest: Manifest) -> str:
    """Returns what a model card says on steps and guidance, as a list."""
    guidance, steps = manifest.trained.guidance, manifest.trained.num_steps
    if isinstance(manifest.trained.sampler, Renoise):
        found = RENOISED.format(steps=steps, sigma=_first_sigma(manifest))
    else:
        found = f"* `num_inference_steps` must be {steps}.\n"
    if guidance.w_range is not None:
        low, high = guidance.w_range
        return found + TAKES_W.format(low=low, high=high, first=1 + low, last=1 + high)
    return found + (GUIDED if guidance.null else FIXED.format(w=guidance.fixed_w))
