"""Writing of a network as a pipeline of Stable Diffusion 3 that diffusers loads unchanged."""

import dataclasses
from typing import Any

import numpy as np
from etils import epath

from distill_jax.diffusion.trained import Ddim, Renoise
from distill_jax.models.diffusers_files import NAME, vae_of
from distill_jax.models.mmdit import Architecture, positions
from distill_jax.models.mmdit_files import BUFFER
from distill_jax.models.pretrained import read_config, torch_state
from distill_jax.sampling.manifest import Manifest
from distill_jax.sampling.student import Student
from distill_jax.storage.weights import Stored
from distill_jax.teachers.diffusers import DIT_FOLDERS, FACTS, check_pipeline
from distill_jax.teachers.directories import VERSION, write_directory
from distill_jax.teachers.flow import text_width

COPIED = (
    *("vae", "text_encoder", "text_encoder_2", "text_encoder_3"),
    *("tokenizer", "tokenizer_2", "tokenizer_3"),
)
LIBRARIES = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "tokenizer_3": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    **dict.fromkeys(("feature_extractor", "image_encoder"), [None, None]),
}
CARD = """---
library_name: diffusers
---

A text-to-image network of {steps} steps, made with distill_jax. Its licence is that of the pipeline
that it was distilled from, whose autoencoder and text encoders these are.

```python
pipeline = StableDiffusion3Pipeline.from_pretrained(DIR)
image = pipeline(
    prompt,
    height={first},
    width={first},
    num_inference_steps={steps},
    sigmas={sigmas},
    guidance_scale={scale},
    max_sequence_length={length},
).images[0]
```

* `sigmas` are the times of its calls before the shift of the schedule, which the scheduler applies.
* `guidance_scale` is 1 + w.{guided}
* {sizes}
"""


def write(student: Student, source: epath.Path, out: epath.Path) -> epath.Path:
    """Writes a network as a pipeline: transformer, scheduler, and the other parts of `source`.

    A student that adds new noise between its calls, such as SwD's, gets a FlowMatchLCMScheduler
    with the factors between its sizes; one in DDIM steps a FlowMatchEulerDiscreteScheduler.

    Raises:
      ValueError: for a network that the pipeline cannot run, half a source, and an `out` that
        exists.
    """
    manifest = student.manifest
    check_exportable(manifest)
    check_pipeline(source, DIT_FOLDERS)
    copied = [source / name for name in COPIED if (source / name).is_dir()]
    missing = {"text_encoder", "text_encoder_2", "tokenizer"} - {path.name for path in copied}
    if missing:
        raise ValueError(
            f"{source} has no {min(missing)}/; expected the pipeline of the network's teacher"
        )
    options = {key: value for key, value in manifest.model.items() if key != "name"}
    arch = Architecture(student.network_spec.spec, **options)
    index = {name: LIBRARIES[name] for name in LIBRARIES if name not in COPIED}
    index |= {path.name: LIBRARIES[path.name] for path in copied}
    absent = {name: [None, None] for name in COPIED if name not in index}
    scheduler = scheduler_config(manifest)
    index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    contents = {
        "transformer/config.json": transformer_config(arch),
        "scheduler/scheduler_config.json": scheduler,
        "model_index.json": {
            "_class_name": "StableDiffusion3Pipeline",
            "_diffusers_version": VERSION,
            **index,
            **absent,
        },
        FACTS: facts(manifest),
    }
    arrays = {**torch_state(student.merged.params), BUFFER: table(arch)}
    weights = {f"transformer/{NAME}.safetensors": arrays}
    factor = vae_of(read_config(source / "vae"), f"{source}/vae/config.json").layers.factor
    length = dict(manifest.spec.cond)["text"].shape[0]
    length -= text_width(source, "", "max_position_embeddings")  # The rest is T5's.
    return write_directory(out, contents, _card(manifest, factor, length), weights, copied)


def check_exportable(manifest: Manifest) -> None:
    """Raises ValueError unless a pipeline of Stable Diffusion 3 can run a network."""
    taken, sampler = dict(manifest.spec.cond), manifest.trained.sampler
    if taken.keys() - {"text_mask"} != {"text", "pooled"} or manifest.trained.guidance.w_range:
        shown = ", ".join((*sorted(taken), *("w" for _ in manifest.trained.guidance.w_range or ())))
        raise ValueError(
            f"the network is 'mmdit' with the conditions {shown or 'none'}; a pipeline of Stable "
            "Diffusion 3 gives a text and a pooled text, and no guidance strength"
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


def transformer_config(arch: Architecture) -> dict[str, Any]:
    """Returns the config.json of a transformer, the inverse of mmdit_files.mmdit_of."""
    cond = dict(arch.spec.data.cond)
    channels = arch.spec.shape[-1]
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": arch.base * arch.patch,
        "patch_size": arch.patch,
        "in_channels": channels,
        "out_channels": channels,
        "num_layers": arch.blocks,
        "attention_head_dim": arch.head_dim,
        "num_attention_heads": arch.heads,
        "joint_attention_dim": cond["text"].shape[-1],
        "caption_projection_dim": arch.width,
        "pooled_projection_dim": cond["pooled"].shape[-1],
        "pos_embed_max_size": arch.places,
        "dual_attention_layers": list(range(arch.dual)),
        "qk_norm": "rms_norm" if arch.qk_norm else None,
    }


def table(arch: Architecture) -> Stored:
    """Returns the table of positions, a buffer of the checkpoint: float32 (1, places^2, width)."""

    def read(index: tuple[slice, ...]) -> np.ndarray:
        whole = positions(arch, (arch.places, arch.places))[None]
        return np.asarray(whole, np.float32)[index]

    return Stored((1, arch.places**2, arch.width), np.dtype("float32"), read)


def scheduler_config(manifest: Manifest) -> dict[str, Any]:
    """Returns the config of a scheduler of diffusers with the shift of our schedule."""
    sampler = manifest.trained.sampler
    config = {"num_train_timesteps": 1000, "shift": manifest.schedule.get("shift", 1.0)}
    if not isinstance(sampler, Renoise):
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", **config}
    sides = sampler.resolutions
    factors = [side / sides[0] for side in sides[1:]]
    scales = {"scale_factors": factors or None, "upscale_mode": "bicubic"}
    return {"_class_name": "FlowMatchLCMScheduler", **config, **scales}


def facts(manifest: Manifest) -> dict[str, Any]:
    """Returns what the reader needs of a student and diffusers has no place for."""
    trained = manifest.trained
    if trained.all_times:
        return {"resolutions": trained.resolutions} if trained.resolutions else {}
    if isinstance(trained.sampler, Renoise):
        return dataclasses.asdict(trained.sampler)
    return {"num_steps": trained.num_steps}


def called(manifest: Manifest) -> dict[str, Any]:
    """Returns the words of a model card on the call of a pipeline: steps, times and guidance."""
    trained = manifest.trained
    guided = trained.guidance.null and trained.guidance.fixed_w == 0 and trained.all_times
    return {
        "steps": trained.num_steps,
        "sigmas": [round(float(t), 6) for t in trained.sampler.times],
        "scale": "7.0" if guided else "1.0",
        "guided": "" if guided else " Its guidance is in the weights, so it must be 1.",
    }


def _card(manifest: Manifest, factor: int, length: int) -> str:
    """Returns the model card: steps, times, sizes and guidance."""
    sampler, side = manifest.trained.sampler, manifest.spec.x.shape[0]
    sides: tuple[int, ...] = getattr(sampler, "resolutions", ()) or (side,)
    shown = ", ".join(f"{side}x{side}" for side in sides)
    return CARD.format(
        **called(manifest),
        first=sides[0] * factor,
        length=length,
        sizes=f"Its calls are at latents of {shown}, a pixel of which is {factor} of the image: "
        f"images of {sides[-1] * factor} pixels.",
    )
