"""Writing of a student as a pipeline that diffusers loads unchanged: Stable Diffusion and SDXL."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etils import epath

from distill_jax.diffusion.inpainting import with_inpainting
from distill_jax.diffusion.spec import INPAINT, DataSpec
from distill_jax.models.diffusers_files import NAME, unet_of
from distill_jax.models.pretrained import torch_state
from distill_jax.models.sd_unet import Architecture
from distill_jax.runtime.files import absolute, read_json
from distill_jax.sampling.manifest import Manifest
from distill_jax.sampling.student import Student
from distill_jax.teachers import flux_pipelines, schedulers, sd3_pipelines
from distill_jax.teachers.diffusers import FACTS, MAX_JSON, check_pipeline, spec_of
from distill_jax.teachers.directories import VERSION, write_directory

INDEX = "model_index.json"
COPIED = ("vae", "text_encoder", "tokenizer")
LIBRARIES = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    **dict.fromkeys(("safety_checker", "feature_extractor", "image_encoder"), [None, None]),
}
XL = {  # What SDXL has beside.
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}
CARD = """---
library_name: diffusers
---

A {what} student of {steps} steps, distilled with distill_jax.

```python
pipeline = {pipeline}.from_pretrained(DIR)
{before}image = pipeline({call}, {arguments}).images[0]
```

{notes}{more}"""
# The class of the pipeline and words of its card, for networks without INPAINT, with it, and SDXL.
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
SDXL = {**TEXT, "pipeline": "StableDiffusionXLPipeline"}


def write_pipeline(student: Student, source: epath.PathLike, out: epath.PathLike) -> epath.Path:
    """Writes a student as a pipeline of diffusers.

    A UNet that takes w, which is guidance_scale - 1 in diffusers, is called once per step.

    Args:
      student: student of a UNet of Stable Diffusion, in DDIM steps or with new noise before each
        call, or of a transformer of Stable Diffusion 3 or FLUX.1, see sd3_pipelines and
        flux_pipelines.
      source: pipeline of its teacher, whose autoencoder, text encoder and tokenizer are copied.
      out: new directory; it appears as a whole.

    Returns:
      The directory.

    Raises:
      ValueError: for a student that the pipeline cannot run, half a source, and an `out` that
        exists.
    """
    source, out, manifest = absolute(source), absolute(out), student.manifest
    if others := {"mmdit": sd3_pipelines, "flux": flux_pipelines}.get(manifest.model["name"]):
        return others.write(student, source, out)
    check_exportable(manifest)
    config = unet_config(manifest.model, manifest.spec, manifest.trained.inputs)
    _check_source(source, config, manifest.spec)
    scheduler = schedulers.scheduler_config(manifest)
    libraries = {**LIBRARIES, "scheduler": ["diffusers", scheduler["_class_name"]]}
    copied = [*COPIED]
    if kind_of(manifest) is SDXL:
        libraries = {**libraries, **XL, **_empty_prompt(source)}
        del libraries["safety_checker"]
        copied += XL
    contents = {
        "unet/config.json": config,
        "scheduler/scheduler_config.json": scheduler,
        INDEX: {
            "_class_name": kind_of(manifest)["pipeline"],
            "_diffusers_version": VERSION,
            **libraries,
        },
        FACTS: _facts(manifest),
    }
    weights = {f"unet/{NAME}.safetensors": torch_state(student.merged.params)}
    parts = [source / name for name in copied]
    return write_directory(out, contents, _card(manifest), weights, parts)


def _empty_prompt(source: epath.Path) -> dict[str, bool]:
    """Returns what the index of SDXL says of the empty prompt: zeros, as the student was trained.

    The conditioner of a run reads the same index.
    """
    key, index = "force_zeros_for_empty_prompt", source / INDEX
    content = read_json(index, MAX_JSON) if index.exists() else {}
    return {key: bool(content.get(key, True))}


def _check_source(source: epath.Path, config: Mapping[str, Any], spec: DataSpec) -> None:
    """Raises ValueError unless a directory is a pipeline whose parts fit the student."""
    check_pipeline(source)
    second = ["tokenizer_2"] if "pooled" in dict(spec.cond) else []
    for name in ("tokenizer", *second):
        if not (source / name).is_dir():
            raise ValueError(f"{source} has no {name}/; expected the pipeline of the teacher")
    expected = spec_of(source, unet_of(config, "the student"), spec.x.shape[0])
    theirs, ours = (dict(each.null)["text"].shape for each in (expected, spec))
    if theirs != ours:
        raise ValueError(
            f"the student takes texts of shape {ours}, and the text encoder in {source} returns "
            f"{theirs}; expected the pipeline of its teacher"
        )


def check_exportable(manifest: Manifest) -> None:
    """Raises ValueError unless a pipeline of Stable Diffusion can run a student."""
    kind, spec, taken = manifest.model["name"], manifest.spec, dict(manifest.spec.cond)
    masked = {INPAINT: taken.get(INPAINT)} if INPAINT in taken else {}
    fits = masked.items() <= dict(with_inpainting(spec._replace(cond=())).cond).items()
    texts = {"text", "text_mask"} | ({"pooled"} if manifest.model.get("size_channels") else set())
    fits = fits and not (masked and "pooled" in texts)  # No pipeline inpaints with SDXL here.
    if kind != "sd_unet" or spec.null.keys() != texts or not fits:
        shown = ", ".join(f"{name} {leaf.shape}" for name, leaf in sorted(taken.items()))
        raise ValueError(
            f"the network is {kind!r} with the conditions {shown or 'none'}; a pipeline of Stable "
            "Diffusion needs 'sd_unet' with a text, and maybe a mask and the masked latent"
        )
    if manifest.model.get("hide_padding"):
        raise ValueError("hide_padding is True; diffusers attends to all tokens: expected False")
    schedulers.check_sampler(manifest)


def kind_of(manifest: Manifest) -> dict[str, str]:
    """Returns the class of the pipeline that runs a network, and its texts in the card."""
    taken = dict(manifest.spec.cond)
    return INPAINTING if INPAINT in taken else SDXL if "pooled" in taken else TEXT


def unet_config(
    model: Mapping[str, Any], data: DataSpec, inputs: tuple[str, ...]
) -> dict[str, Any]:
    """Returns the config.json of a UNet, the inverse of diffusers_files.unet_of."""
    fields = {field.name: field.default for field in dataclasses.fields(Architecture)}
    options = {**fields, **model}
    levels, cond = range(len(options["widths"])), dict(data.cond)
    masked = cond[INPAINT].shape[-1] if INPAINT in cond else 0
    across = ("DownBlock2D", "CrossAttnDownBlock2D")
    down = [across[level in options["transformers"]] for level in levels]
    more: dict[str, Any] = {}
    more |= {"transformer_layers_per_block": list(options["depths"])} if options["depths"] else {}
    if size := options["size_channels"]:
        more |= {"addition_embed_type": "text_time", "addition_time_embed_dim": size}
        width = 6 * size + cond["pooled"].shape[-1]
        more |= {"projection_class_embeddings_input_dim": width}
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
        "time_cond_proj_dim": options["w_channels"] if "w" in inputs else None,
        "norm_eps": 1e-5,
        **more,
    }


def _facts(manifest: Manifest) -> dict[str, Any]:
    """Returns what the reader needs of a student and diffusers has no place for."""
    guidance = manifest.trained.guidance
    return {"num_steps": manifest.trained.num_steps, "w_range": guidance.w_range}


def _card(manifest: Manifest) -> str:
    """Returns the model card, with the steps and the guidance."""
    return CARD.format(
        steps=manifest.trained.num_steps,
        arguments=schedulers.arguments(manifest),
        before=schedulers.before(manifest),
        notes=schedulers.notes(manifest),
        **kind_of(manifest),
    )
