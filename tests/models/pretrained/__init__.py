"""Outputs of PyTorch's originals (recorded.npz), and what they were computed from: see make.py."""

import zlib

import numpy as np

LAYER = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
TOWER = {**LAYER, "intermediate_size": 24, "layer_norm_eps": 1e-3}
TEXT = {**TOWER, "vocab_size": 40, "max_position_embeddings": 12}
IMAGE = {**TOWER, "image_size": 21, "patch_size": 7}
OLD = {**TEXT, "hidden_act": "quick_gelu", "eos_token_id": 2}
NEW = {**TEXT, "hidden_act": "gelu", "eos_token_id": 38}  # 39 is larger, and not the end.
BERT = {**TEXT, "vocab_size": 48, "model_type": "bert"}
BERT_EPSILON = {key: value for key, value in BERT.items() if key != "layer_norm_eps"}  # 1e-12.
T5 = {
    "model_type": "t5",
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 3,
    "num_heads": 2,
    "vocab_size": 40,
    "feed_forward_proj": "gated-gelu",
    "layer_norm_epsilon": 1e-3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
}
DINOV2 = {**LAYER, "image_size": 70, "patch_size": 7, "mlp_ratio": 3, "layer_norm_eps": 1e-3}
OPEN_CLIP = {
    "embed_dim": 10,
    "vision_cfg": {
        "image_size": 21,
        "layers": 2,
        "width": 16,
        "head_width": 8,
        "patch_size": 7,
        "mlp_ratio": 1.6,
    },
    "text_cfg": {"context_length": 12, "vocab_size": 40, "width": 16, "heads": 2, "layers": 2},
}
# Token numbers; 38 is the end, 39 comes before it, after it, or not at all.
IDS = np.asarray(
    [
        [1, 5, 7, 39, 8, 38, 38, 38, 38, 38, 38, 38],
        [1, 9, 3, 38, 39, 0, 0, 0, 0, 0, 0, 0],
        [1, *range(20, 30), 38],
    ],
    np.int32,
)
MASK = np.arange(12) < np.asarray([[6], [4], [12]])
PROMPTS = (
    "",
    "the  THEN\n\tthat\u00a0they're 12 a1b2!?",
    "<|endoftext|> the <|startoftext|> <|ENDOFTEXT|>",
    "Cafe\u0301 \u00fc\u00df \u0130 \ufb01 \u65e5\u672c \U0001f600\u200d &amp; \0 'S",
    "that the " * 20,
)


def weights(name, shape):
    """Returns random weights for a leaf with a PyTorch name.

    Embeddings are so small that the epsilon of a norm counts; so are inputs of group norms.
    """
    x = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    if name.endswith("_embeddings.weight"):  # BERT's.
        x = x / 3000
    elif "pool.0" in name:  # TAEF2's.
        x = x / 1000
    elif ".conv.4." in name:  # At the end of its blocks.
        x = x / np.sqrt(8 * np.prod(shape[1:]))
    elif "LayerNorm" in name or "pool.1" in name:
        x = 0.1 * x + name.endswith("weight")
    elif "embedding" in name or name.endswith(("cls_token", "mask_token")):
        x = x / 30
    elif len(shape) <= 1:
        x = 0.1 * x + ("norm" in name or "ln_" in name or "lambda" in name) * ("weight" in name)
        x += 0.5 * name.endswith("lambda1")
    else:
        x = 1.5 * x / np.sqrt(np.prod(shape[1:]))
    return np.asarray(x, np.float32)


def images(height, width):
    """Returns two random images, normalised, float32 (2, height, width, 3)."""
    return np.random.default_rng(height).normal(size=(2, height, width, 3)).astype(np.float32)


def picture(height, width):
    """Returns a random picture, uint8 (height, width, 3)."""
    x = np.random.default_rng(width).integers(0, 256, (height, width, 3))
    return x.astype(np.uint8)


PIECES = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdehinrstuy0123!?&'<>|[]-,.", "##e")
PIECES = (
    *PIECES,
    "the",
    "that",
    "they",
    "##n",
    "##re",
    "##2",
    "cafe",
    "amp",
    "##ss",
    "start",
    "##of",
)
SENTENCES = (
    "red apple",
    "green apple",
    "fire engine",
    "firetruck",
    "a juicy fruit",
    "flag of brazil",
    "",
)


def latents():
    """Returns a random latent of TAEF2, float32 (1, 2, 3, 32)."""
    return np.random.default_rng(0).normal(scale=2, size=(1, 2, 3, 32)).astype(np.float32)


def vocabulary():
    """Returns the tokens and merges of a small tokenizer of the form of CLIP's."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [chr(256 + n) for n in range(256 - len(printable))]
    letters = [*map(chr, printable), *others]
    merges = ["t h", "th e</w>", "th a", "tha t</w>", "th e", "the n</w>", "' s</w>", "r e</w>"]
    merges += ["the y</w>", "a m", "am p</w>", "1 2</w>", "\u00c3 \u00bc</w>"]
    merged = ["".join(merge.split()) for merge in merges]
    ends = (f"{letter}</w>" for letter in letters)
    return [*letters, *ends, *merged, "<|startoftext|>", "<|endoftext|>"], merges
