"""Stable Diffusion 1.5, 512x512: BOOT, a student of one call, from prompts without images.

Gu et al. (2023, arXiv:2306.05544) train such a student of Stable Diffusion 2.1 base. Neither the
paper's text nor its code was at hand: guidance in the teacher, AdamW and the weight 1 / D^2 are
from memory; w, delta, times, batch, learning rate and updates are ours. At t = 0.98 the x of a
network that predicts eps has 13 times its rounding, and 1 / D^2 weighs the difference of two such
x: it computes in float32. Not run. docs/teachers.md says where the directories come from:

    python -m distill_jax.main --config=configs/sd15_boot.py:plan --plan_for=64xh100 \
        --config.mesh.fsdp=8    # sizes and memory, without directories
    python -m distill_jax.main --config=configs/sd15_boot.py --config.mesh.fsdp=8
    python -m distill_jax.main --config=configs/sd15_boot.py:smoke    # a small network, on shapes
"""

from distill_jax.config import (
    CLIP_L,
    check_size,
    from_prompts,
    pipeline,
    plan_latents,
    smoke_latents,
    stage,
)


def get_config(size="full"):
    """Returns the config of the imported teacher's student of one call, w = 6.5."""
    check_size(size, "full", "plan", "smoke")
    config = from_prompts("stable-diffusion-v1-5", size=512, w=6.5)
    config.model.dtype = config.frozen_dtype = "float32"
    config.stages = pipeline(
        stage(
            "boot",
            "boot",
            teacher="teachers/sd15",
            steps=50_000,
            learning_rate=2e-5,
            warmup=1000,
            weight_decay=0.01,
            ema_decay=0.9999,
            new=("target_embed",),
            w=6.5,
            delta=0.04,
            solver="euler",
            step_weight="inverse",
        )
    )
    if size == "plan":
        return plan_latents(config, CLIP_L)
    return smoke_latents(config) if size == "smoke" else config
