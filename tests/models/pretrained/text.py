"""Small directories of SDXL's, SD3's and FLUX's text encoders, with random weights.

It needs no JAX, because make_text.py runs it beside PyTorch.
"""

import json

import tokenizers

from tests.models.pretrained import T5 as BASE
from tests.models.pretrained import vocabulary, weights

TOKENS, MERGES = vocabulary()
START, END = len(TOKENS) - 2, len(TOKENS) - 1
PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), ("\u2581a", -1.0), ("\u2581red", -2.0)]
PIECES += [("\u2581fox", -2.0), ("x", -3.0), ("\u2581", -4.0), ("!", -3.0)]
LENGTH, T5_LENGTH, WIDTH = 12, 9, 48
PROMPTS = ("a red fox", "", "the THEN that! x!!", "that the red fox " * 6)
COMMON = {
    "model_type": "clip_text_model",
    "vocab_size": len(TOKENS),
    "max_position_embeddings": LENGTH,
}
SMALL = {
    **COMMON,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-3,
    "projection_dim": 10,
    "eos_token_id": END,
}
BIG = {
    **COMMON,
    "hidden_size": 24,
    "intermediate_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 14,
    "eos_token_id": 2,
}
T5 = {**BASE, "d_model": WIDTH, "num_layers": 2}
# The encoders of each pipeline: class in transformers, and config.
ENCODERS = {
    "sdxl": (("CLIPTextModel", SMALL), ("CLIPTextModelWithProjection", BIG)),
    "sd3": (
        ("CLIPTextModelWithProjection", SMALL),
        ("CLIPTextModelWithProjection", BIG),
        ("T5EncoderModel", T5),
    ),
    "flux": (("CLIPTextModel", SMALL), ("T5EncoderModel", T5)),
}
NAMES = ("text_encoder", "text_encoder_2", "text_encoder_3")


def state_of(name, shapes):
    """Returns the weights of the encoder in a folder of this name, by PyTorch's names."""
    return {key: weights(f"{name}.{key}", tuple(shape)) for key, shape in shapes.items()}


def write_tokenizer(folder, kind, pad="<|endoftext|>"):
    """Writes the tokenizer of CLIP or T5, as it is published."""
    folder.mkdir(parents=True)
    if kind == "T5EncoderModel":
        pieces = tokenizers.Tokenizer(tokenizers.models.Unigram(PIECES, 2))
        pieces.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
        pieces.decoder = tokenizers.decoders.Metaspace()
        pieces.add_special_tokens(["<pad>", "</s>"])
        pieces.post_processor = tokenizers.processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", 1)]
        )
        pieces.save(str(folder / "tokenizer.json"))
        return
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]))
    special = {"bos_token": "<|startoftext|>", "pad_token": pad}
    special |= dict.fromkeys(("eos_token", "unk_token"), "<|endoftext|>")
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    if pad == "!":  # Its other file names the pad, too.
        return
    config = {**special, "tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_pipeline(folder, kind, shapes_of, save, index=True):
    """Writes the encoders and tokenizers of a pipeline.

    Args:
      folder: a new directory.
      kind: a key of ENCODERS.
      shapes_of: maps class and config to the shapes of the weights by PyTorch's names.
      save: maps file and weights to the file.
      index: whether to write model_index.json.
    """
    content = {"_class_name": kind, "force_zeros_for_empty_prompt": True}
    for name, (network, config) in zip(NAMES, ENCODERS[kind], strict=False):
        (folder / name).mkdir(parents=True)
        (folder / name / "config.json").write_text(json.dumps(config))
        save(folder / name / "model.safetensors", state_of(name, shapes_of(network, config)))
        pad = "!" if name == "text_encoder_2" else "<|endoftext|>"
        write_tokenizer(folder / name.replace("text_encoder", "tokenizer"), network, pad)
        content[name] = ["transformers", network]
    if index:
        (folder / "model_index.json").write_text(json.dumps(content))
    return folder
