"""Writing of pipelines of diffusers with a transformer on a flow: Stable Diffusion 3, FLUX.1."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from distill_jax.diffusion.trained import Ddim, Renoise
from distill_jax.models.diffusers_files import NAME, vae_of
from distill_jax.models.pretrained import read_config
from distill_jax.sampling.manifest import Manifest
from distill_jax.storage.weights import Stored
from distill_jax.teachers.diffusers import DIT_FOLDERS, FACTS, check_pipeline
from distill_jax.teachers.directories import VERSION, write_directory

CARD = """---
library_name: diffusers
---

A text-to-image network of {steps} steps, made with distill_jax. Its licence is that of the pipeline
that it was distilled from, whose autoencoder and text encoders these are.

```python
pipeline = {pipeline}.from_pretrained(DIR)
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
* {guided}
* {sizes}
"""


class Pipeline(NamedTuple):
    """A class of pipelines.

    Attributes:
      name: its name in diffusers.
      title: its name in messages.
      transformer: class of its network.
      parts: library and class of the parts that are copied from the teacher's pipeline.
      takes_w: whether it gives the network a guidance strength as an input.
      optional: parts that a teacher's pipeline may lack.
    """

    name: str
    title: str
    transformer: str
    parts: Mapping[str, list[str]]
    takes_w: bool
    optional: tuple[str, ...] = ()


class Content(NamedTuple):
    """The files and the model card of a network, as diffusers has them.

    Attributes:
      config: its config.json, without the class.
      arrays: its weights by the names of diffusers.
      words: words of the model card, see the function `called` of a pipeline's module.
      facts: what the reader needs and diffusers has no place for.
    """

    config: dict[str, Any]
    arrays: dict[str, Stored]
    words: dict[str, Any]
    facts: dict[str, Any]


def write(
    kind: Pipeline, manifest: Manifest, content: Content, source: epath.Path, out: epath.Path
) -> epath.Path:
    """Writes a pipeline: transformer, scheduler, and the other parts of `source`.

    A student that adds new noise between its calls, such as SwD's, gets a FlowMatchLCMScheduler
    with the factors between its sizes; one in DDIM steps a FlowMatchEulerDiscreteScheduler.

    Raises:
      ValueError: for half a source, and an `out` that exists.
    """
    check_pipeline(source, DIT_FOLDERS)
    copied = [source / name for name in kind.parts if (source / name).is_dir()]
    missing = set(kind.parts) - set(kind.optional) - {path.name for path in copied}
    if missing:
        raise ValueError(
            f"{source} has no {min(missing)}/; expected the pipeline of the network's teacher"
        )
    scheduler = scheduler_config(manifest)
    there = {path.name: kind.parts[path.name] for path in copied}
    index = {
        "_class_name": kind.name,
        "_diffusers_version": VERSION,
        "transformer": ["diffusers", kind.transformer],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        **dict.fromkeys((*kind.parts, "feature_extractor", "image_encoder"), [None, None]),
        **there,
    }
    contents = {
        "transformer/config.json": {"_class_name": kind.transformer, **content.config},
        "scheduler/scheduler_config.json": scheduler,
        "model_index.json": index,
        FACTS: content.facts,
    }
    weights = {f"transformer/{NAME}.safetensors": content.arrays}
    factor = vae_of(read_config(source / "vae"), f"{source}/vae/config.json").layers.factor
    sides = sides_of(manifest)
    shown = ", ".join(f"{side}x{side}" for side in sides)
    card = CARD.format(
        **content.words,
        pipeline=kind.name,
        first=sides[0] * factor,
        sizes=f"Its calls are at latents of {shown}, a pixel of which is {factor} of the image: "
        f"images of {sides[-1] * factor} pixels.",
    )
    return write_directory(out, contents, card, weights, copied)


def check_exportable(kind: Pipeline, manifest: Manifest) -> None:
    """Raises ValueError unless a pipeline can run a network."""
    taken, sampler = dict(manifest.spec.cond), manifest.trained.sampler
    strength = manifest.trained.guidance.w_range and not kind.takes_w
    if taken.keys() - {"text_mask"} != {"text", "pooled"} or strength:
        shown = ", ".join((*sorted(taken), *(["w"] if strength else [])))
        raise ValueError(
            f"the network is {manifest.model['name']!r} with the conditions {shown or 'none'}; a "
            f"pipeline of {kind.title} gives a text and a pooled text"
            f"{'' if kind.takes_w else ', and no guidance strength'}"
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


def sides_of(manifest: Manifest) -> tuple[int, ...]:
    """Returns the sides of the latents of the calls; one if all have the same."""
    return getattr(manifest.trained.sampler, "resolutions", ()) or (manifest.spec.x.shape[0],)


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
    """Returns the steps of a student, and the sizes of a teacher, for its reader."""
    trained = manifest.trained
    if trained.all_times:
        return {"resolutions": trained.resolutions} if trained.resolutions else {}
    if isinstance(trained.sampler, Renoise):
        return dataclasses.asdict(trained.sampler)
    return {"num_steps": trained.num_steps}


def called(manifest: Manifest) -> dict[str, Any]:
    """Returns the words of a model card on the steps, times and text of a call."""
    return {
        "steps": manifest.trained.num_steps,
        "sigmas": [round(float(t), 6) for t in manifest.trained.sampler.times],
        "length": dict(manifest.spec.cond)["text"].shape[0],
        "more": "",
    }
