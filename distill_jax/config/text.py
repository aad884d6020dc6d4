"""Text encoders of several networks, for plans without a directory; see conditioner.model."""

# Text encoders in config.json, for plans without a directory: CLIP ViT-L/14, and OpenCLIP ViT-H/14
# without its last layer.
CLIP_L = (
    '{"model_type": "clip_text_model", "hidden_size": 768, "intermediate_size": 3072, '
    '"num_hidden_layers": 12, "num_attention_heads": 12, "vocab_size": 49408, '
    '"projection_dim": 768}'
)
CLIP_H = (
    '{"model_type": "clip_text_model", "hidden_size": 1024, "intermediate_size": 4096, '
    '"num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu", "vocab_size": 49408}'
)
# OpenCLIP ViT-bigG/14 with its projection, and the encoder of T5 1.1 XXL, whose sizes are defaults.
CLIP_G = (
    '{"model_type": "clip_text_model", "hidden_size": 1280, "intermediate_size": 5120, '
    '"num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu", '
    '"vocab_size": 49408, "projection_dim": 1280}'
)
T5_XXL = '{"model_type": "t5"}'
SDXL_TEXT = f'{{"model_type": "sdxl", "encoders": [{CLIP_L}, {CLIP_G}], "zeros": true}}'
SD3_TEXT = f'{{"model_type": "sd3", "encoders": [{CLIP_L}, {CLIP_G}, {T5_XXL}]}}'
FLUX_TEXT = f'{{"model_type": "flux", "encoders": [{CLIP_L}, {T5_XXL}]}}'
