"""Writing of a network as a pipeline of FLUX.1 that diffusers loads unchanged."""

from typing import Any

from etils import epath

from distill_jax.diffusion.trained import Ddim, Renoise
from distill_jax.models.build import as_tuples
from distill_jax.models.diffusers_files import NAME, vae_of
from distill_jax.models.flux import Architecture
from distill_jax.models.pretrained import read_config, torch_state
from distill_jax.sampling.manifest import Manifest
from distill_jax.sampling.student import Student
from distill_jax.teachers.diffusers import DIT_FOLDERS, FACTS, check_pipeline
from distill_jax.teachers.directories import VERSION, write_directory
from distill_jax.teachers.sd3_pipelines import facts, scheduler_config

COPIED = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
LIBRARIES = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    **dict.fromkeys(("feature_extractor", "image_encoder"), [None, None]),
}
CARD = """---
library_name: diffusers
---

A text-to-image network of {steps} steps, made with distill_jax. Its licence is that of the pipeline
that it was distilled from, whose autoencoder and text encoders these are.

```python
pipeline = FluxPipeline.from_pretrained(DIR)
image = pipeline(
    prompt,
    height={side},
    width={side},
    num_inference_steps={steps},
    sigmas={sigmas},
    guidance_scale={scale},
    max_sequence_length={length},
).images[0]
```

* `sigmas` are the times of its calls before the shift of the schedule, which the scheduler applies.
* {guided}
"""


def write(student: Student, source: epath.Path, out: epath.Path) -> epath.Path:
    """Writes a network as a pipeline: transformer, scheduler, and the other parts of `source`.

    A student that adds new noise between its calls gets a FlowMatchLCMScheduler, one in DDIM steps
    a FlowMatchEulerDiscreteScheduler.

    Raises:
      ValueError: for a network that the pipeline cannot run, half a source, and an `out` that
        exists.
    """
    manifest = student.manifest
    check_exportable(manifest)
    check_one_size(manifest)
    check_pipeline(source, DIT_FOLDERS)
    missing = [name for name in COPIED if not (source / name).is_dir()]
    if missing:
        raise ValueError(
            f"{source} has no {missing[0]}/; expected the pipeline of the network's teacher"
        )
    options = {key: value for key, value in as_tuples(manifest.model).items() if key != "name"}
    arch = Architecture(student.network_spec.spec, **options)
    scheduler = scheduler_config(manifest)
    index = {**LIBRARIES, "scheduler": ["diffusers", scheduler["_class_name"]]}
    contents = {
        "transformer/config.json": transformer_config(arch),
        "scheduler/scheduler_config.json": scheduler,
        "model_index.json": {
            "_class_name": "FluxPipeline",
            "_diffusers_version": VERSION,
            **index,
        },
        FACTS: {**facts(manifest), "w_range": manifest.trained.guidance.w_range},
    }
    weights = {f"transformer/{NAME}.safetensors": torch_state(student.merged.params)}
    factor = vae_of(read_config(source / "vae"), f"{source}/vae/config.json").layers.factor
    card = CARD.format(**called(manifest), side=manifest.spec.x.shape[0] * factor)
    return write_directory(out, contents, card, weights, [source / name for name in COPIED])


def check_exportable(manifest: Manifest) -> None:
    """Raises ValueError unless the transformer and schedulers of diffusers can run a network."""
    taken, sampler = dict(manifest.spec.cond), manifest.trained.sampler
    if taken.keys() - {"text_mask"} != {"text", "pooled"}:
        raise ValueError(
            f"the network is 'flux' with the conditions {', '.join(sorted(taken)) or 'none'}; a "
            "pipeline of FLUX.1 gives a text and a pooled text"
        )
    if not isinstance(sampler, (Ddim, Renoise)):
        raise ValueError(
            f"the sampler is {type(sampler).__name__}; diffusers has Ddim and Renoise on a flow"
        )
    if manifest.schedule["name"] != "rectified_flow" or manifest.parameterization != "flow":
        raise ValueError(
            f"schedule is {manifest.schedule['name']!r} and parameterization "
            f"{manifest.parameterization!r}; expected 'rectified_flow' and 'flow'"
        )


def grows(manifest: Manifest) -> bool:
    """Returns whether the latents grow between the calls."""
    return len({*getattr(manifest.trained.sampler, "resolutions", ())}) > 1


def check_one_size(manifest: Manifest) -> None:
    """Raises ValueError for a student whose latents grow between its calls."""
    if grows(manifest):
        raise ValueError(
            f"the calls of {manifest.stage} are at latents of growing sizes, which FluxPipeline, "
            "whose latents are packed, cannot scale: take --format=lora or --format=safetensors"
        )


def transformer_config(arch: Architecture) -> dict[str, Any]:
    """Returns the config.json of a transformer, the inverse of flux_files.flux_of."""
    cond = dict(arch.spec.data.cond)
    return {
        "_class_name": "FluxTransformer2DModel",
        "patch_size": 1,
        "in_channels": arch.spec.shape[-1] * arch.patch**2,
        "num_layers": arch.blocks,
        "num_single_layers": arch.singles,
        "attention_head_dim": arch.head_dim,
        "num_attention_heads": arch.heads,
        "joint_attention_dim": cond["text"].shape[-1],
        "pooled_projection_dim": cond["pooled"].shape[-1],
        "guidance_embeds": arch.guidance,
        "axes_dims_rope": list(arch.axes),
    }


def called(manifest: Manifest, fixed_w: float = 0.0) -> dict[str, Any]:
    """Returns the words of a model card on the call of a pipeline: steps, times and guidance.

    Args:
      manifest: manifest of the network.
      fixed_w: the w of a base whose embedding of w a LoRA leaves in its place.
    """
    trained = manifest.trained
    low, high = trained.guidance.w_range or (fixed_w, fixed_w)
    guided = "`guidance_scale` is 1 + w, and " + (
        f"w is from {low:g} to {high:g}." if high > low else f"w is {low:g}."
    )
    if not (trained.guidance.w_range or fixed_w):
        guided = "Its guidance is in the weights: `guidance_scale` changes nothing."
    return {
        "steps": trained.num_steps,
        "sigmas": [round(float(t), 6) for t in trained.sampler.times],
        "scale": f"{1 + high:.1f}",
        "guided": guided,
        "length": dict(manifest.spec.cond)["text"].shape[0],
    }
