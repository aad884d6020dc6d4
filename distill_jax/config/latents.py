"""Parts of configs that distil published latent diffusion models (Meng et al. 2023, section 5.2).

Of the paper's settings, batch, w, the fine-tuning to v, and the updates of stage 1 and of the
rounds are from memory. Its learning rates, EMA and updates of the fine-tuning were not at hand.
"""

from typing import Any

from ml_collections import ConfigDict

from distill_jax.config.chains import base, halvings, pipeline, smoke, stage, with_teacher
from distill_jax.config.presets import LSG, MATCHING, on_shapes

COND_PROJ = ("time_embedding.cond_proj",)  # The module for w of diffusers' UNets.


def latents(**model: Any) -> ConfigDict:
    """Returns `base` for latents of a published autoencoder and the network `model`, in bfloat16.

    The batch is that of the paper.
    """
    config = base()
    config.codec.update(name="autoencoder", draw=True)
    config.model = dict(dtype="bfloat16", remat="full", **model)
    config.batch_size, config.frozen_dtype, config.save_every = 512, "bfloat16", 500
    config.evaluate.update(w=(2.0, 6.5, 14.0), num_samples=1000)
    return config


def stable_diffusion(path: str, size: int, **model: Any) -> ConfigDict:
    """Returns `latents` for captioned pictures of `size` pixels and a directory of a pipeline.

    The schedule is Stable Diffusion's, rescaled so that it ends at pure noise.
    """
    config = latents(name="sd_unet", **model)
    config.data = dict(name="captioned_folder", path="pictures", size=size)
    config.codec.path = path
    config.conditioner = dict(name="pretrained", path=path)
    ends = dict(beta_min=0.00085, beta_max=0.012, power=2, zero_snr=True)
    config.schedule = dict(name="ddpm", num_steps=1000, **ends)
    return config


def from_prompts(path: str, size: int, w: float, **model: Any) -> ConfigDict:
    """Returns `stable_diffusion` for methods without images, whose network predicts eps.

    The data are a file of prompts. The schedule is the teacher's own, with a signal at its end,
    because the student starts at other noise levels, and nothing fine-tunes the teacher.

    Args:
      path: directory of a pipeline.
      size: side of the pictures in pixels.
      w: guidance strength in the student's weights.
      **model: options of the network.
    """
    config = stable_diffusion(path, size, **model)
    config.data = dict(name="prompts", path="prompts.txt", size=size)
    config.codec.draw = config.schedule.zero_snr = False
    config.parameterization, config.evaluate.w = "eps", (w,)
    return config


def lsg_stages(
    teacher: str, kappa: float, images: int, times: tuple[float, ...] = ()
) -> ConfigDict:
    """Returns the one stage of SiD-LSG, with the settings of the released code.

    Args:
      teacher: directory of the imported teacher.
      kappa: guidance scale of fake and teacher.
      images: images that the student draws in training, 512 in an update.
      times: times of the calls of a few-step student; () for one call.
    """
    rates: dict[str, Any] = dict(learning_rate=1e-6, decay_to=1.0, ema_decay=0.99293)
    steps = round(images / 512)
    given: dict[str, Any] = dict(kappas=kappa, times=times, **LSG, **MATCHING)
    return pipeline(stage("sid_lsg", "sid_lsg", teacher=teacher, steps=steps, **rates, **given))


def latent_stages(
    teacher: str,
    w_range: tuple[float, float],
    size: str,
    new: tuple[str, ...] = COND_PROJ,
    first: int = 256,
) -> ConfigDict:
    """Returns the stages finetune (eps to v), guided in 512 steps, and `first`, ..., 1 steps.

    Args:
      teacher: directory of the imported teacher.
      w_range: (smallest, largest) w.
      size: "stochastic" ends with rounds for the stochastic sampler, "two_students" has the paper's
        baseline: rounds without stage 1 and w, whose student is guided like its teacher. Others
        have deterministic rounds.
      new: modules of the student for w.
      first: steps of the first halved student.
    """
    rates: dict[str, Any] = dict(learning_rate=1e-5, warmup=200)
    tuned: dict[str, Any] = dict(steps=10_000, decay_to=1.0, ema_decay=0.999)
    updates = {"default": 2000, 4: 20_000, 2: 20_000, 1: 20_000}
    guide: dict[str, Any] = dict(steps=3000, ema_decay=0.99, w_range=w_range, new=new)
    ended: dict[str, Any] = dict(start=first, steps=updates, w_range=w_range)
    if size == "stochastic":  # Both samplers make the same single step.
        ended.update(end=2, method="stochastic", prefix="s")
    elif size == "two_students":
        guide, ended = {}, dict(start=first, steps=updates, label_dropout=0.1)
    guided = [stage("guided", "guided", num_steps=2 * first, **guide, **rates)] if guide else []
    return pipeline(
        stage("finetune", "diffusion", teacher=teacher, num_steps=2 * first, **tuned, **rates),
        *guided,
        *halvings(**ended, **rates),
    )


def plan_latents(config: ConfigDict, text_encoder: str = "", **teacher: Any) -> ConfigDict:
    """Returns a config for --plan only: it has the sizes of the full one, and needs no directory.

    Args:
      config: the full config.
      text_encoder: a constant of config.text, for data with captions.
      **teacher: options of a new first stage, see with_teacher.
    """
    if text_encoder:
        size = config.data.size
        config.data = dict(name="noise", size=size, count=16, num_classes=0, captioned=True)
        config.conditioner.update(path="", model=text_encoder)
    config.codec.path = ""
    return with_teacher(config, **teacher)


# Options of small networks.
SMALL: dict[str, dict[str, Any]] = {
    "diffusers_dit": dict(patch=4, width=32, blocks=2, heads=2),
    "sd_unet": dict(widths=(16,), blocks=1, transformers=(), heads=(2,), groups=8),
}


def smoke_latents(config: ConfigDict) -> ConfigDict:
    """Returns `smoke` of a config: a small new network on shapes or noise, without directories."""
    config = smoke(with_teacher(config, steps=8))
    if config.conditioner:
        config = on_shapes(config)
    else:
        config.data = dict(name="noise", size=16, count=16, num_classes=config.data.num_labels)
        config.batch_size, config.evaluate.num_samples, config.evaluate.few = 4, 10, 10
        config.codec = dict(name="patch_pca", patch=2)
    config.model = dict(name=config.model.name, **SMALL[config.model.name])
    config.frozen_dtype, config.evaluate.w = "float32", config.evaluate.w[:2]
    return config
