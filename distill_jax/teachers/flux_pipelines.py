"""Writing of a network as a pipeline of FLUX.1 that diffusers loads unchanged."""

from typing import Any

from etils import epath

from distill_jax.models.build import as_tuples
from distill_jax.models.flux import Architecture
from distill_jax.models.pretrained import torch_state
from distill_jax.sampling.manifest import Manifest
from distill_jax.sampling.student import Student
from distill_jax.teachers import flow_pipelines

PIPELINE = flow_pipelines.Pipeline(
    "FluxPipeline",
    "FLUX.1",
    "FluxTransformer2DModel",
    {
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
    },
    takes_w=True,
)
GROWS = """ No pipeline of diffusers scales
  the packed latents of FLUX.1 between calls: the code above draws at the first size only, and
  `python -m distill_jax.sample` at all."""


def write(student: Student, source: epath.Path, out: epath.Path) -> epath.Path:
    """Writes a network as a pipeline, see flow_pipelines.write.

    Raises:
      ValueError: for a network that the pipeline cannot run, such as one whose latents grow between
        its calls, half a source, and an `out` that exists.
    """
    manifest = student.manifest
    check_exportable(manifest)
    if _grows(manifest):
        raise ValueError(
            f"the calls of {manifest.stage} are at latents of growing sizes, which FluxPipeline, "
            "whose latents are packed, cannot scale: take --format=lora or --format=safetensors"
        )
    options = {key: value for key, value in as_tuples(manifest.model).items() if key != "name"}
    content = flow_pipelines.Content(
        transformer_config(Architecture(student.network_spec.spec, **options)),
        torch_state(student.merged.params),
        called(manifest),
        {**flow_pipelines.facts(manifest), "w_range": manifest.trained.guidance.w_range},
    )
    return flow_pipelines.write(PIPELINE, manifest, content, source, out)


def check_exportable(manifest: Manifest) -> None:
    """Raises ValueError unless the transformer and schedulers of diffusers can run a network."""
    flow_pipelines.check_exportable(PIPELINE, manifest)


def _grows(manifest: Manifest) -> bool:
    """Returns whether the latents grow between the calls."""
    return len({*flow_pipelines.sides_of(manifest)}) > 1


def transformer_config(arch: Architecture) -> dict[str, Any]:
    """Returns the config.json of a transformer, the inverse of flux_files.flux_of."""
    cond = dict(arch.spec.data.cond)
    return {
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


def called(manifest: Manifest) -> dict[str, Any]:
    """Returns the words of a model card on the call of a pipeline: steps, times and guidance."""
    low, high = manifest.trained.guidance.w_range or (0.0, 0.0)
    values = f"from {low:g} to {high:g}" if high > low else f"{low:g}"
    given = manifest.trained.guidance.w_range is not None
    own = "Its guidance is in the weights: `guidance_scale` changes nothing."
    return {
        **flow_pipelines.called(manifest),
        "scale": f"{1 + high:.1f}",
        "guided": f"`guidance_scale` is 1 + w, and w is {values}." if given else own,
        "more": GROWS if _grows(manifest) else "",
    }
