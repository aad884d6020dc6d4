"""Outputs of diffusers (recorded*.npz, inpainted.npy), and what they come from: make.py."""

import zlib

import numpy as np

TEXT = 12  # Width of the tokens of a text.
TYPES = ("CrossAttnDownBlock2D", "DownBlock2D")
UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [8, 16, 24],
    "down_block_types": [TYPES[0], TYPES[0], TYPES[1]],
    "up_block_types": [name.replace("Down", "Up") for name in (TYPES[1], TYPES[0], TYPES[0])],
    "cross_attention_dim": TEXT,
    "attention_head_dim": 2,  # The number of heads.
    "norm_num_groups": 4,
    "norm_eps": 1e-5,
}
SHALLOW = {
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": [*TYPES],
    "up_block_types": [name.replace("Down", "Up") for name in reversed(TYPES)],
}
UNETS = {
    "sd1": UNET,
    "sd2": {**UNET, **SHALLOW, "attention_head_dim": [1, 4], "use_linear_projection": True},
    "w": {**UNET, **SHALLOW, "time_cond_proj_dim": 16},
    "inpaint": {**UNET, **SHALLOW, "in_channels": 9},
}
# A student of the inpainting network; its arrays have the names of the network "w".
INPAINTING = {**UNETS["w"], "in_channels": 9, "sample_size": 8}
VAE = {
    "block_out_channels": [8, 16, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 0.18215,
}
NO_QUANT = {"use_quant_conv": False, "use_post_quant_conv": False}
VAES = {
    "four": VAE,
    "sixteen": {**VAE, "latent_channels": 16, **NO_QUANT, "scaling_factor": 1.5305}
    | {"shift_factor": 0.0609, "block_out_channels": [8, 16], "layers_per_block": 2}
    | {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2},
}
DIT = {
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 3,
    "sample_size": 8,
    "patch_size": 2,
    "num_embeds_ada_norm": 5,
}
# The last has one patch, whose embedded place the bias cancels.
DIT_SIZES = ((2, 8, 8), (3, 4, 4), (1, 2, 2))
LABELS = (5, 1, 3)  # The first is the null label.
MMDIT = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "joint_attention_dim": TEXT,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 10,
}
MMDITS = {
    "sd3": {**MMDIT, "num_layers": 3, "pos_embed_max_size": 6},
    "sd35": {**MMDIT, "num_layers": 4, "pos_embed_max_size": 12}
    | {"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
}
MMDIT_QUIET = ("pos_embed", "context_embedder", "add_q_proj")
FLUX = {
    "in_channels": 16,  # Of patches of 2x2 with 4 channels.
    "num_layers": 2,
    "num_single_layers": 3,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "axes_dims_rope": (2, 6, 8),
    "joint_attention_dim": TEXT,
    "pooled_projection_dim": MMDIT["pooled_projection_dim"],
}
FLUXES = {"schnell": FLUX, "dev": {**FLUX, "num_layers": 1, "guidance_embeds": True}}
# Of a student of the network "w", as in the scheduler_config.json of its pipeline.
SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "set_alpha_to_one": True,
    "clip_sample": False,
    "thresholding": False,
}
STEPS, W = 4, 3.0
# Of a student of the network "sd35" whose latents grow, and of its teacher.
FLOW_LCM = {
    "_class_name": "FlowMatchLCMScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "scale_factors": [2.0],
    "upscale_mode": "bicubic",
}
FLOW_EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
FLOW_EULER["shift"] = 3.0
FLOW_TIMES, FLOW_SIDES = (1.0, 0.5), (4, 8)
SIZES = ((2, 8, 8), (1, 4, 12))  # Batch, height and width of the latents.
# Layers whose outputs enter a softmax, a gate or a sinusoid's MLP, or are the network's.
LOUD = ("to_q", "to_k", "net.0.proj", "time_embedding", "conv_out", "quant_conv")
DIT_LOUD = ("to_q", "to_k", "to_v", "net.0.proj", "norm1", "proj_out")


def weights(name, shape):
    """Returns random weights for an array with a name of diffusers.

    Activations before the norms are so small that their epsilons count.
    """
    seed = name[name.index("emb.") :] if "norm1.emb." in name else name  # The same in all blocks.
    x = np.random.default_rng(zlib.crc32(seed.encode())).normal(size=shape)
    of_vae = name.startswith(("encoder", "decoder"))
    of_dit = name.startswith(("pos_embed", "transformer_blocks", "proj_out"))
    loud = DIT_LOUD if of_dit else LOUD
    quiet = 0.003 if of_vae else 0.01
    if len(shape) > 1:
        x *= (1.5 if any(part in name for part in loud) else quiet) / np.sqrt(np.prod(shape[1:]))
    elif "norm" in name:
        x = 0.1 * x + name.endswith("weight")
    else:
        x *= 0.3 * quiet
    if name == "pos_embed.proj.bias":
        x -= np.repeat([0, 1, 0, 1], len(x) // 4)
    return np.asarray(x, np.float32)


def mmdit_weights(name, shape):
    """Returns random weights for an array of SD3Transformer2DModel or FluxTransformer2DModel.

    The text before its first norm and its queries are so small that the epsilons count.
    """
    x = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    if len(shape) > 1:
        x *= (0.003 if any(part in name for part in MMDIT_QUIET) else 1) / np.sqrt(x[0].size)
    elif "norm" in name and name.endswith("weight"):
        x = 1 + 0.1 * x
    else:
        x *= 0.001
    return np.asarray(x, np.float32)


def pooled(sizes):
    """Returns vectors of whole texts for a network of MMDITS or FLUXES."""
    width = MMDIT["pooled_projection_dim"]
    return np.random.default_rng(7).normal(size=(sizes[0], width)).astype(np.float32)


def flow_noise(call):
    """Returns the noise (2, s, s, 4) before a call of the student, with the side of its latents."""
    side = FLOW_SIDES[call]
    return np.random.default_rng(call).normal(size=(2, side, side, 4)).astype(np.float32)


def inputs(sizes, channels):
    """Returns latents, indices of noise levels, tokens of a text and w, for a network."""
    batch, height, width = sizes
    rng = np.random.default_rng(channels)
    z = rng.normal(size=(batch, height, width, channels))
    text = rng.normal(size=(batch, 7, TEXT))
    # The times (k + 1) / 1000 are exact in float32. Angles of w are 1000 w, which float32 rounds.
    found = z, rng.choice([124, 374, 749, 999], batch), text, rng.choice([2.0, 3.0], batch)
    return tuple(np.asarray(x, np.float32) for x in found)


def mask(sizes, factor):
    """Returns a mask (height, width) for the images of `pixels`, whose edges cross patches."""
    row, column = np.ogrid[: sizes[1] * factor, : sizes[2] * factor]
    return np.asarray((row + 2 * column) % 13 < 6, np.float32)


def pixels(sizes, factor):
    """Returns images in [-1, 1] whose latents have these sizes."""
    batch, height, width = sizes
    shape = (batch, height * factor, width * factor, 3)
    return np.random.default_rng(factor).uniform(-1, 1, shape).astype(np.float32)
