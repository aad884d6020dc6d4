"""Writing of a student as a pipeline that diffusers loads unchanged: Stable Diffusion's UNets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from distill_jax.diffusion.inpainting import with_inpainting
from distill_jax.diffusion.spec import INPAINT, DataSpec
from distill_jax.diffusion.trained import Ddim
from distill_jax.models.diffusers_files import NAME, unet_of
from distill_jax.models.pretrained import torch_state
from distill_jax.models.sd_unet import TIMESTEPS, Architecture
from distill_jax.runtime.files import absolute
from distill_jax.sampling.manifest import Manifest
from distill_jax.sampling.student import Student
from distill_jax.teachers import sd3_pipelines
from distill_jax.teachers.diffusers import (
    FACTS,
    POWERS,
    PREDICTIONS,
    check_pipeline,
    spec_of,
)
from distill_jax.teachers.directories import VERSION, write_directory

COPIED = ("vae", "text_encoder", "tokenizer")
LIBRARIES = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    **dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"), [None, None]),
}
CARD = """---
library_name: diffusers
---

A {what} student of {steps} steps, distilled with distill_jax.

```python
pipeline = {pipeline}.from_pretrained(DIR)
image = pipeline({call}, num_inference_steps={steps}, guidance_scale={scale}).images[0]
```

* `num_inference_steps` must be {steps}.
* The network takes the guidance strength w = guidance_scale - 1 as an input. It was trained with w
  from {low:g} to {high:g}: take a `guidance_scale` from {first:g} to {last:g}. The default of
  diffusers is 7.5.
* A negative prompt has no effect, because the pipeline makes no second call for guidance.
{more}"""
# The class of the pipeline and words of its card, for networks without INPAINT and with it.
TEXT = {
    "pipeline": "StableDiffusionPipeline",
    "what": "text-to-image",
    "call": "prompt",
    "more": "",
}
INPAINTING = {
    "pipeline": "StableDiffusionInpaintPipeline",
    "what": "text-guided inpainting",
    "call": "prompt, image, mask_image, strength=1.0",
    "more": "* `mask_image` is white where the image is new. `strength` must be 1.0: the network "
    "starts from noise.\n",
}


def write_pipeline(student: Student, source: epath.PathLike, out: epath.PathLike) -> epath.Path:
    """Writes a student as a pipeline of diffusers.

    A UNet takes w, which is guidance_scale - 1 in diffusers, and is called once per step.

    Args:
      student: student of a UNet of Stable Diffusion, in DDIM steps, or of a transformer of Stable
        Diffusion 3, see sd3_pipelines.
      source: pipeline of its teacher, whose autoencoder, text encoder and tokenizer are copied.
      out: new directory; it appears as a whole.

    Returns:
      The directory.

    Raises:
      ValueError: for a student that the pipeline cannot run, half a source, and an `out` that
        exists.
    """
    source, out, manifest = absolute(source), absolute(out), student.manifest
    if manifest.model["name"] == "mmdit":
        return sd3_pipelines.write(student, source, out)
    check_exportable(manifest)
    config = unet_config(manifest.model, manifest.spec)
    _check_source(source, config, manifest.spec)
    contents = {
        "unet/config.json": config,
        "scheduler/scheduler_config.json": _scheduler_config(manifest),
        "model_index.json": {
            "_class_name": _kind(manifest)["pipeline"],
            "_diffusers_version": VERSION,
            **LIBRARIES,
        },
        FACTS: _facts(manifest),
    }
    weights = {f"unet/{NAME}.safetensors": torch_state(student.merged.params)}
    copied = [source / name for name in COPIED]
    return write_directory(out, contents, _card(manifest), weights, copied)


def _check_source(source: epath.Path, config: Mapping[str, Any], spec: DataSpec) -> None:
    """Raises ValueError unless a directory is a pipeline whose parts fit the student."""
    check_pipeline(source)
    if not (source / "tokenizer").is_dir():
        raise ValueError(f"{source} has no tokenizer/; expected the pipeline of the teacher")
    expected = spec_of(source, unet_of(config, "the student"), spec.x.shape[0])
    theirs, ours = (dict(each.cond)["text"].shape for each in (expected, spec))
    if theirs != ours:
        raise ValueError(
            f"the student takes texts of shape {ours}, and the text encoder in {source} returns "
            f"{theirs}; expected the pipeline of its teacher"
        )


def check_exportable(manifest: Manifest) -> None:
    """Raises ValueError unless a pipeline of Stable Diffusion can run a network, which takes w."""
    sampler, steps = manifest.trained.sampler, manifest.trained.sampler.num_steps
    kind, heads = manifest.model["name"], sorted(PREDICTIONS.values())
    spec, taken = manifest.spec, dict(manifest.spec.cond)
    masked = {INPAINT: taken.get(INPAINT)} if INPAINT in taken else {}
    fits = masked.items() <= dict(with_inpainting(spec._replace(cond=())).cond).items()
    if kind != "sd_unet" or spec.null.keys() != {"text", "text_mask"} or not fits:
        shown = ", ".join(f"{name} {leaf.shape}" for name, leaf in sorted(taken.items()))
        raise ValueError(
            f"the network is {kind!r} with the conditions {shown or 'none'}; a pipeline of Stable "
            "Diffusion needs 'sd_unet' with a text, and maybe a mask and the masked latent"
        )
    if manifest.model.get("hide_padding"):
        raise ValueError("hide_padding is True; diffusers attends to all tokens: expected False")
    if manifest.trained.guidance.w_range is None:
        raise ValueError(
            "the network takes no guidance strength; expected a student of a guided stage"
        )
    if not isinstance(sampler, Ddim) or TIMESTEPS % steps:
        raise ValueError(
            f"the sampler is {type(sampler).__name__} in {steps} steps; the DDIM of diffusers has "
            f"its times only in a number of steps that divides {TIMESTEPS}, such as 1, 2, 4 or 8"
        )
    if manifest.schedule["name"] != "ddpm" or manifest.parameterization not in heads:
        raise ValueError(
            f"schedule is {manifest.schedule['name']!r} and parameterization "
            f"{manifest.parameterization!r}; expected 'ddpm' and one of {', '.join(heads)}"
        )


def _kind(manifest: Manifest) -> dict[str, str]:
    """Returns the class of the pipeline that runs a network, and its texts in the card."""
    return INPAINTING if INPAINT in dict(manifest.spec.cond) else TEXT


def unet_config(model: Mapping[str, Any], data: DataSpec) -> dict[str, Any]:
    """Returns the config.json of a UNet that takes w, the inverse of diffusers_files.unet_of."""
    fields = {field.name: field.default for field in dataclasses.fields(Architecture)}
    options = {**fields, **model}
    levels, cond = range(len(options["widths"])), dict(data.cond)
    masked = cond[INPAINT].shape[-1] if INPAINT in cond else 0
    across = ("DownBlock2D", "CrossAttnDownBlock2D")
    down = [across[level in options["transformers"]] for level in levels]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": data.x.shape[0],
        "in_channels": data.x.shape[-1] + masked,
        "out_channels": data.x.shape[-1],
        "block_out_channels": list(options["widths"]),
        "layers_per_block": options["blocks"],
        "down_block_types": down,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
        "attention_head_dim": list(options["heads"]),
        "use_linear_projection": options["linear"],
        "norm_num_groups": options["groups"],
        "cross_attention_dim": cond["text"].shape[-1],
        "time_cond_proj_dim": options["w_channels"],
        "norm_eps": 1e-5,
    }


def _scheduler_config(manifest: Manifest) -> dict[str, Any]:
    """Returns the config of a DDIMScheduler whose calls are at our times."""
    names = {power: name for name, power in POWERS.items()}
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    schedule = manifest.schedule
    return {
        "_class_name": "DDIMScheduler",
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


def _facts(manifest: Manifest) -> dict[str, Any]:
    """Returns what the reader needs of a student and diffusers has no place for."""
    guidance = manifest.trained.guidance
    return {"num_steps": manifest.trained.num_steps, "w_range": guidance.w_range}


def _card(manifest: Manifest) -> str:
    """Returns the model card, with the steps and the range of guidance_scale."""
    low, high = manifest.trained.guidance.w_range  # type: ignore[misc]  # Checked before.
    steps, scale = manifest.trained.sampler.num_steps, min(max(7.5, 1 + low), 1 + high)
    given = {"low": low, "high": high, "first": 1 + low, "last": 1 + high}
    return CARD.format(steps=steps, scale=f"{scale:g}", **given, **_kind(manifest))
