"""What recorded_sdxl.npz comes from: a small UNet of SDXL, with a level without transformers."""

import numpy as np

from tests.models.diffusers import TEXT, UNET, inputs
from tests.models.diffusers import weights as quiet_weights

POOLED, CHANNELS = 6, 8  # Of the pooled text, and of the sinusoid of a size.
TYPES = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
SDXL = {
    **UNET,
    "sample_size": 8,
    "layers_per_block": 1,
    "down_block_types": [*TYPES],
    "up_block_types": [name.replace("Down", "Up") for name in reversed(TYPES)],
    "attention_head_dim": [1, 2, 3],  # The numbers of heads.
    "transformer_layers_per_block": [1, 2, 3],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": CHANNELS,
    "projection_class_embeddings_input_dim": 6 * CHANNELS + POOLED,
}
TEXTS = {  # config.json of its text encoders.
    "text_encoder": {"hidden_size": 5, "max_position_embeddings": 7},
    "text_encoder_2": {"hidden_size": TEXT - 5, "max_position_embeddings": 7}
    | {"projection_dim": POOLED},
}


def pooled(sizes):
    """Returns pooled texts."""
    return np.random.default_rng(8).normal(size=(sizes[0], POOLED)).astype(np.float32)


def arguments(sizes):
    """Returns latents, indices of noise levels, tokens of a text and pooled texts."""
    z, k, text, _ = inputs(sizes, SDXL["in_channels"])
    return z, k, text, pooled(sizes)


def weights(name, shape):
    """Returns random weights, with which the outputs depend on the sizes and the pooled text."""
    return quiet_weights(name, shape) * np.float32(100 if "add_embedding" in name else 1)
