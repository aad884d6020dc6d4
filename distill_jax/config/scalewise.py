"""Parts of configs of SwD on published transformers (Starodubcev et al. 2025, arXiv:2503.16397)."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from distill_jax.config.chains import pipeline, smoke, stage, with_teacher
from distill_jax.config.latents import latents, plan_latents
from distill_jax.config.presets import on_shapes

# Sides of the latents of the students, and indices of their calls in the grid of 28 levels: those
# of 4 and 6 calls are the released ones of Stable Diffusion 3.5 medium, that of 2 calls is ours.
SCALES: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    2: ((64, 128), (0, 14)),
    4: ((64, 80, 96, 128), (0, 7, 14, 18)),
    6: ((32, 48, 64, 80, 96, 128), (0, 4, 7, 12, 14, 18)),
}
SHIFT = 3.0  # Of Stable Diffusion 3.5's flow.


def grid_times(indices: Sequence[int], shift: float = SHIFT) -> tuple[float, ...]:
    """Returns the times of a flow with a shift at levels of Stable Diffusion 3.5's grid.

    Its 28 times are in equal steps before the shift, from 1 to 0.002994.
    """
    equal = [1 - i / 27 * (1 - 0.002994) for i in indices]
    levels = [SHIFT * t / (1 + (SHIFT - 1) * t) for t in equal]
    return tuple(round(level / (shift - (shift - 1) * level), 6) for level in levels)


def flow_latents(path: str, shift: float = SHIFT, **model: Any) -> ConfigDict:
    """Returns `base` for a published flow transformer on latents 128x128x16, in bfloat16.

    Args:
      path: directory of the pipeline, with the autoencoder and the text encoders.
      shift: shift of its schedule.
      **model: the network and its options.
    """
    config = latents(**model)
    config.data = dict(name="captioned_folder", path="samples", size=1024)
    config.codec.path = path
    config.conditioner = dict(name="pretrained", path=path)
    config.schedule = dict(name="rectified_flow", shift=shift)
    config.parameterization = "flow"
    config.optimizer.clip_norm = 10.0
    config.evaluate.w = (0.0,)
    return config


def scalewise(teacher: str, calls: int, shift: float = SHIFT, **options: Any) -> ConfigDict:
    """Returns the stage `swd` with the settings of the released scripts, updated by `options`.

    Args:
      teacher: directory of the imported teacher, which was trained on all sides of the calls.
      calls: number of calls, a key of SCALES.
      shift: shift of the schedule.
      **options: options of the stage and of the method; w, steps and batch_size are the model's.
    """
    sides, indices = SCALES[calls]
    rates = dict(learning_rate=5e-6, decay_to=1.0, weight_decay=0.01, lora=64)
    given = dict(times=grid_times(indices, shift), resolutions=sides)
    return pipeline(stage("swd", "swd", teacher=teacher, **(rates | given | options)))


def plan_scalewise(config: ConfigDict, text_encoder: str, channels: int = 16) -> ConfigDict:
    """Returns a config for --plan only: it has the sizes of the full one, and needs no directory.

    Args:
      config: the full config.
      text_encoder: the text encoders in config.json.
      channels: channels of the latents.
    """
    sides = tuple(sorted({*config.stages.s00_swd.method.resolutions}))
    config.codec.channels = channels
    return plan_latents(config, text_encoder, resolutions=sides, num_steps=28)


def smoke_scalewise(config: ConfigDict, **model: Any) -> ConfigDict:
    """Returns `smoke` of a config: a small new network `model` on shapes, without directories."""
    config.stages.s00_swd.method.update(times=(1.0, 0.5), resolutions=(4, 8))
    config.stages.s00_swd.lora = 4
    config = on_shapes(smoke(with_teacher(config, 8, resolutions=(4, 8), num_steps=28)))
    config.model, config.frozen_dtype = model, "float32"
    return config
