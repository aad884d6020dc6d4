"""Parts of configs of SwD on published transformers (Starodubcev et al. 2025, arXiv:2503.16397)."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from distill_jax.config.chains import base, pipeline, smoke, stage, with_teacher

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
    config = base()
    config.data = dict(name="captioned_folder", path="samples", size=1024)
    config.codec.update(name="autoencoder", path=path, draw=True)
    config.conditioner = dict(name="pretrained", path=path)
    config.model = dict(dtype="bfloat16", remat="full", **model)
    config.schedule = dict(name="rectified_flow", shift=shift)
    config.parameterization, config.frozen_dtype = "flow", "bfloat16"
    config.save_every = 500
    config.optimizer.clip_norm = 10.0
    config.evaluate.update(w=(0.0,), num_samples=1000)
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


def _with_teacher(config: ConfigDict, steps: int) -> ConfigDict:
    """Returns a config whose chain begins with a new teacher, trained on all sides of the calls."""
    sides = tuple(sorted({*config.stages.s00_swd.method.resolutions}))
    return with_teacher(config, steps, resolutions=sides, num_steps=28)


def plan_scalewise(config: ConfigDict, text_encoder: str, channels: int = 16) -> ConfigDict:
    """Returns a config for --plan only: it has the sizes of the full one, and needs no directory.

    Args:
      config: the full config.
      text_encoder: the text encoders in config.json.
      channels: channels of the latents.
    """
    size = config.data.size
    config.data = dict(name="noise", size=size, count=16, num_classes=0, captioned=True)
    config.conditioner.update(path="", model=text_encoder)
    config.codec.update(path="", channels=channels)
    return _with_teacher(config, 1)


def smoke_scalewise(config: ConfigDict, **model: Any) -> ConfigDict:
    """Returns `smoke` of a config: a small new network `model` on shapes, without directories."""
    config.stages.s00_swd.method.update(times=(1.0, 0.5), resolutions=(4, 8))
    config.stages.s00_swd.lora = 4
    config = smoke(_with_teacher(config, 8))
    config.data = dict(name="shapes", count=64, tests=64)
    config.conditioner = dict(name="words", width=32, layers=1, length=10, updates=2)
    config.codec = dict(name="patch_pca", patch=2)
    config.model, config.frozen_dtype = model, "float32"
    return config
