"""Writing of a network as a pipeline of Stable Diffusion 3 that diffusers loads unchanged."""

from typing import Any

import numpy as np
from etils import epath

from distill_jax.models.mmdit import Architecture, positions
from distill_jax.models.mmdit_files import BUFFER
from distill_jax.models.pretrained import torch_state
from distill_jax.sampling.manifest import Manifest
from distill_jax.sampling.student import Student
from distill_jax.storage.weights import Stored
from distill_jax.teachers import flow_pipelines

CLIP_TOKENS = 77  # Of the text, before those of T5.
PIPELINE = flow_pipelines.Pipeline(
    "StableDiffusion3Pipeline",
    "Stable Diffusion 3",
    "SD3Transformer2DModel",
    {
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "text_encoder_3": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "tokenizer_3": ["transformers", "T5TokenizerFast"],
    },
    takes_w=False,
    optional=("text_encoder_3", "tokenizer_2", "tokenizer_3"),
)


def write(student: Student, source: epath.Path, out: epath.Path) -> epath.Path:
    """Writes a network as a pipeline, see flow_pipelines.write.

    Raises:
      ValueError: for a network that the pipeline cannot run, half a source, and an `out` that
        exists.
    """
    manifest = student.manifest
    check_exportable(manifest)
    options = {key: value for key, value in manifest.model.items() if key != "name"}
    arch = Architecture(student.network_spec.spec, **options)
    content = flow_pipelines.Content(
        transformer_config(arch),
        {**torch_state(student.merged.params), BUFFER: table(arch)},
        called(manifest),
        flow_pipelines.facts(manifest),
    )
    return flow_pipelines.write(PIPELINE, manifest, content, source, out)


def check_exportable(manifest: Manifest) -> None:
    """Raises ValueError unless a pipeline of Stable Diffusion 3 can run a network."""
    flow_pipelines.check_exportable(PIPELINE, manifest)


def transformer_config(arch: Architecture) -> dict[str, Any]:
    """Returns the config.json of a transformer, the inverse of mmdit_files.mmdit_of."""
    cond = dict(arch.spec.data.cond)
    channels = arch.spec.shape[-1]
    return {
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


def called(manifest: Manifest) -> dict[str, Any]:
    """Returns the words of a model card on the call of a pipeline: steps, times and guidance."""
    trained, words = manifest.trained, flow_pipelines.called(manifest)
    guided = trained.guidance.null and trained.guidance.fixed_w == 0 and trained.all_times
    own = "" if guided else " Its guidance is in the weights, so it must be 1."
    return {
        **words,
        "length": words["length"] - CLIP_TOKENS,
        "scale": "7.0" if guided else "1.0",
        "guided": f"`guidance_scale` is 1 + w.{own}",
    }
