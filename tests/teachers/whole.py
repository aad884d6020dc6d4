"""Whole pipelines of diffusers with random weights: UNet, autoencoder, text encoder, tokenizer."""

import json

import jax
import numpy as np

from distill_jax.models import text_encoders
from distill_jax.models.clip import TextOptions
from distill_jax.models.pretrained import torch_state
from distill_jax.storage import safetensors
from tests.models.diffusers import TEXT
from tests.models.pretrained import vocabulary
from tests.sampling.test_autoencoder import write as write_vae
from tests.teachers.test_diffusers import write

TOKENS, MERGES = vocabulary()
CLIP = {
    "hidden_size": TEXT,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": len(TOKENS),
    "max_position_embeddings": 7,
    "eos_token_id": len(TOKENS) - 1,
}


def write_whole(folder, name="sd2", **changes):
    """Writes a pipeline with the recorded UNet of this name; changes as in `write`."""
    write_vae(folder / "vae")
    write(folder, name, **changes, text={"model_type": "clip_text_model", **CLIP})
    rng = np.random.default_rng(0)
    shapes = text_encoders.shapes(TextOptions(**CLIP))
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype("float32") / 4, shapes)
    safetensors.write(folder / "text_encoder" / "model.safetensors", torch_state(params))
    (folder / "tokenizer").mkdir()
    numbers = {token: number for number, token in enumerate(TOKENS)}
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(numbers))
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]))
    return folder
