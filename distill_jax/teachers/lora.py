"""Writing of a student's adapters as a LoRA, a file that diffusers loads onto published weights."""

import dataclasses
import pprint
from collections.abc import Mapping
from typing import Any

import numpy as np
from etils import epath

from distill_jax.models.pretrained import torch_state
from distill_jax.runtime.trees import by_name, insert, is_stacked
from distill_jax.sampling.loading import describe, find_part, load_own
from distill_jax.sampling.manifest import Manifest
from distill_jax.sampling.student import Student
from distill_jax.storage import safetensors
from distill_jax.storage.weights import Stored, of_array
from distill_jax.teachers import (
    flow_pipelines,
    flux_pipelines,
    pipelines,
    schedulers,
    sd3_pipelines,
)
from distill_jax.teachers.directories import new_file
from distill_jax.typing import Tree

STYLES = ("lora", "kohya")
PREFIXES = {
    "sd_unet": "unet",
    "mmdit": "transformer",
    "flux": "transformer",
}  # Of the names of a network in diffusers.
SIDES = {"lora_A": "lora_down", "lora_B": "lora_up"}  # Of PEFT and of Kohya.
# What diffusers' reader of Kohya's names does not know.
UNNAMED = "time_embedding.cond_proj"
WHOLE = "write the whole network: --format=diffusers --source=PIPELINE"
CARD = """---
library_name: diffusers
tags: [lora]
---

A {what} student of {steps} steps, distilled with distill_jax: a LoRA of rank {rank} on
{folder}, whose network has the SHA-256 {sha256}.
Its licence is that of its base.

```python
from diffusers import {scheduler}, {pipeline}

pipeline = {pipeline}.from_pretrained("{folder}")
pipeline.load_lora_weights("{file}")
pipeline.scheduler = {scheduler}.from_config(
{options}
)
{before}image = pipeline(
    {call},
    height={height} * pipeline.vae_scale_factor,
    width={width} * pipeline.vae_scale_factor,
    {arguments},
).images[0]
```

{notes}{more}"""
KINDS = {"sd_unet": pipelines, "mmdit": sd3_pipelines, "flux": flux_pipelines}
# Of a student of Stable Diffusion 3 or FLUX.1.
CALL = (
    "num_inference_steps={steps}, sigmas={sigmas}, guidance_scale={scale}, "
    "max_sequence_length={length}"
)
NOTES = """\
* `sigmas` are the times of its calls before the shift of the schedule, which the scheduler applies.
* {guided}
* Its calls are at latents with these sides: {sides}.{more}
"""


def write_lora(student: Student, style: str, out: epath.PathLike) -> epath.Path:
    """Writes the adapters of a student as a LoRA, and beside it a model card, FILE.md.

    Args:
      student: student of an imported network of diffusers, described or loaded; its base need not
        be loaded.
      style: style of the names, one of STYLES: that of PEFT or that of Kohya.
      out: new file, *.safetensors.

    Returns:
      The file.

    Raises:
      ValueError: for a student that a LoRA or diffusers cannot hold, and for an `out` that exists.
    """
    out, manifest = new_file(out, "a LoRA", ".safetensors", ".md"), student.manifest
    source = check_exportable(student, style)
    adapters = load_own(student.directory, student.layout, allow=student.allow)
    arrays = _named(lora_state(adapters), style, PREFIXES[manifest.model["name"]])
    text = _card(_with_base_w(student), source, out.name)
    out.parent.mkdir(parents=True, exist_ok=True)
    safetensors.write(out, arrays)
    out.with_suffix(".md").write_text(text)
    return out


def check_exportable(student: Student, style: str) -> Mapping[str, Any]:
    """Returns the record of the import of a student's base.

    Raises:
      ValueError: unless its adapters are of an imported network, and its sampler one of diffusers.
    """
    manifest = student.manifest
    kind, adapters = manifest.model["name"], manifest.adapters
    if adapters is None:
        raise ValueError(f"{manifest.stage} has no adapters, for all its weights are new; {WHOLE}")
    if kind not in PREFIXES:
        raise ValueError(
            f"the network is {kind!r}; diffusers loads a LoRA of {', '.join(PREFIXES)}"
        )
    KINDS[kind].check_exportable(manifest)
    if style == "kohya" and kind != "sd_unet":
        raise ValueError(
            f"the network is {kind!r}; diffusers reads Kohya's names for the UNets of Stable "
            "Diffusion: take --format=lora"
        )
    if style == "kohya" and "w" in manifest.trained.inputs:
        raise ValueError(
            f"the network has {UNNAMED}, which Kohya has no name for: take --format=lora"
        )
    base = find_part(student, adapters.base)
    source = describe(base, allow=student.allow).manifest.lineage.source or {}
    if source.get("format") != "diffusers":
        raise ValueError(
            f"the adapters change the weights in {base}, which are not those of a pipeline of "
            f"diffusers, so nobody else has them; {WHOLE}"
        )
    return source


def lora_state(adapters: Tree) -> dict[str, Stored]:
    """Returns adapters by their names in PEFT, without a prefix: MODULE.lora_A.weight and lora_B.

    PEFT computes y = x W^T + (alpha / r) (x A^T) B^T, with A (r, in) and B (out, r), so A and B are
    ours transposed, and alpha = r. On a convolution, A is one of the same size to r channels, and B
    one of 1x1.

    Raises:
      ValueError: for modules that are trained in full.
    """
    leaves = by_name(adapters)
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *modules, kernel, side = name.split("/")
        if side not in ("lora_a", "lora_b"):
            raise ValueError(
                f"{'.'.join((*modules, kernel))} is trained in full, which a LoRA cannot hold; "
                f"{WHOLE}"
            )
        convolves = leaves["/".join((*modules, kernel, "lora_a"))].ndim - is_stacked(name) == 4
        axes = (-4, -3) if convolves and side == "lora_b" else ()
        place = "/".join((*modules, f"lora_{side[-1].upper()}", "kernel"))
        insert(tree, place, np.expand_dims(leaf, axes))
    return torch_state(tree)


def _named(state: Mapping[str, Stored], style: str, prefix: str) -> dict[str, Stored]:
    """Returns the result of lora_state under the names of a style."""
    if style == "lora":
        return {f"{prefix}.{name}": leaf for name, leaf in state.items()}
    found = {}
    for name, leaf in state.items():
        module, side, weight = name.rsplit(".", 2)
        place = f"lora_{prefix}_{module.replace('.', '_')}"
        found[f"{place}.{SIDES[side]}.{weight}"] = leaf
        if side == "lora_A":
            found[f"{place}.alpha"] = of_array(np.asarray(leaf.shape[0], np.float32))
    return found


def _with_base_w(student: Student) -> Manifest:
    """Returns a manifest that takes the w of its base, if its base was imported for one w only.

    The weights that take w are not in a LoRA, so the base still takes it.
    """
    manifest = student.manifest
    base = find_part(student, manifest.adapters.base)  # type: ignore[union-attr]  # Checked before.
    w = describe(base, allow=student.allow).manifest.trained.guidance.fixed_w
    if not w:
        return manifest
    guidance = manifest.trained.guidance._replace(w_range=(w, w))
    return dataclasses.replace(manifest, trained=manifest.trained._replace(guidance=guidance))


def _card(manifest: Manifest, source: Mapping[str, Any], file: str) -> str:
    """Returns the model card: base, scheduler, steps, times, sizes and guidance."""
    height, width, _ = manifest.spec.x.shape
    sides, module = flow_pipelines.sides_of(manifest), KINDS[manifest.model["name"]]
    if module is pipelines:
        scheduler, kind = schedulers.scheduler_config(manifest), pipelines.kind_of(manifest)
        names = ("before", "arguments", "notes")
        lines = {name: getattr(schedulers, name)(manifest) for name in names}
    else:
        scheduler, called = flow_pipelines.scheduler_config(manifest), module.called(manifest)
        kind = {**pipelines.TEXT, "pipeline": module.PIPELINE.name}
        notes = NOTES.format(**called, sides=", ".join(map(str, sides)))
        lines = {"before": "", "arguments": CALL.format(**called), "notes": notes}
    return CARD.format(
        steps=manifest.trained.num_steps,
        rank=manifest.adapters.rank,  # type: ignore[union-attr]  # Checked before.
        folder=source.get("file"),
        sha256=source.get("sha256"),
        file=file,
        scheduler=scheduler.pop("_class_name"),
        options=pprint.pformat(scheduler, sort_dicts=False),
        height=sides[0],
        width=sides[0] * width // height,
        **kind,
        **lines,
    )
