"""Makes recorded_text.npz: what the pipelines of diffusers make of prompts. Run from the checkout:

python -m venv reference && . reference/bin/activate
pip install torch==2.13.0 transformers==5.24.0 diffusers==0.42.1 numpy
python tests/models/pretrained/make_text.py
"""

import pathlib
import sys
import tempfile
import types

import diffusers
import numpy as np
import torch
import transformers
from transformers import CLIPTextConfig, CLIPTokenizer, PreTrainedTokenizerFast, T5Config

sys.path.insert(0, str(pathlib.Path(__file__).parents[3]))
from tests.models.pretrained.text import (  # noqa: E402
    ENCODERS,
    LENGTH,
    NAMES,
    PROMPTS,
    T5_LENGTH,
    WIDTH,
    state_of,
    write_tokenizer,
)

NEGATIVE = "that fox"


def encoder(name, network, config):
    """Returns an encoder with the random weights of a folder's name."""
    kind = T5Config if network.startswith("T5") else CLIPTextConfig
    made = getattr(transformers, network)(kind(**config)).eval()
    prefix = "text_model." if network == "CLIPTextModel" else ""  # As in published files.
    leaves = dict(made.named_parameters())
    state = state_of(name, {prefix + key: leaf.shape for key, leaf in leaves.items()})
    with torch.no_grad():
        for key, leaf in leaves.items():
            leaf.copy_(torch.tensor(state[prefix + key]))
    return made


def parts(kind, folder):
    """Returns encoders and tokenizers of a pipeline by name."""
    found = {}
    for name, (network, config) in zip(NAMES, ENCODERS[kind], strict=False):
        found[name] = encoder(name, network, config)
        place = pathlib.Path(folder) / name.replace("text_encoder", "tokenizer")
        pad = "!" if name == "text_encoder_2" else "<|endoftext|>"
        write_tokenizer(place, network, pad)
        if network.startswith("T5"):
            file, ends = str(place / "tokenizer.json"), {"pad_token": "<pad>", "eos_token": "</s>"}
            found[place.name] = PreTrainedTokenizerFast(tokenizer_file=file, **ends)
        else:
            given = {"model_max_length": LENGTH, "pad_token": pad}
            found[place.name] = CLIPTokenizer.from_pretrained(place, **given)
    return found


def sdxl(given):
    made = diffusers.StableDiffusionXLPipeline(
        vae=None, unet=None, scheduler=None, add_watermarker=False, **given
    )
    text, zeros, pooled, none = made.encode_prompt(list(PROMPTS), device="cpu")
    negative = made.encode_prompt(["a"], device="cpu", negative_prompt=NEGATIVE)
    assert not zeros.any() and not none.any()
    found = {"text": text, "pooled": pooled, "negative": negative[1]}
    return {**found, "negative_pooled": negative[3]}


def sd3(given):
    made = diffusers.StableDiffusion3Pipeline(transformer=None, vae=None, scheduler=None, **given)
    made.transformer = types.SimpleNamespace(
        config=types.SimpleNamespace(joint_attention_dim=WIDTH)
    )
    texts = (list(PROMPTS),) * 3
    text, empty, pooled, _ = made.encode_prompt(*texts, device="cpu", max_sequence_length=T5_LENGTH)
    found = {"text": text, "pooled": pooled, "null": empty[:1]}
    made.text_encoder_3 = None
    found["without"] = made.encode_prompt(*texts, device="cpu", max_sequence_length=T5_LENGTH)[0]
    return found


def flux(given):
    made = diffusers.FluxPipeline(transformer=None, vae=None, scheduler=None, **given)
    text, pooled, _ = made.encode_prompt(list(PROMPTS), device="cpu", max_sequence_length=T5_LENGTH)
    return {"text": text, "pooled": pooled}


if __name__ == "__main__":
    arrays = {}
    for kind, run in (("sdxl", sdxl), ("sd3", sd3), ("flux", flux)):
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            found = run(parts(kind, folder))
        arrays.update({f"{kind}_{key}": leaf.numpy() for key, leaf in found.items()})
    np.savez_compressed(pathlib.Path(__file__).parent / "recorded_text.npz", **arrays)
