"""Stable Diffusion 2.1, 768x768: from 512 x 2 calls to 4, 2 and 1, for w in [2, 14].

Meng et al. (2023, arXiv:2210.03142), section 5.2, for a newer network, which predicts v: the stage
"finetune" only teaches it a terminal SNR of zero. The settings are those of sd15_guided, and as
sure as there. Not run. docs/teachers.md says where pipeline, pictures and teacher come from:

    python -m distill_jax.main --config=configs/sd21_guided.py:plan --plan_for=64xh100 \
        --config.mesh.fsdp=8 --config.microbatches=4    # sizes and memory, without directories
    python -m distill_jax.main --config=configs/sd21_guided.py --config.mesh.fsdp=8
    python -m distill_jax.main --config=configs/sd21_guided.py:base    # 512x512, the base model
    python -m distill_jax.main --config=configs/sd21_guided.py:stochastic    # its sampler, to 2
    python -m distill_jax.main --config=configs/sd21_guided.py:smoke    # a small network, on shapes
"""

from distill_jax.config import (
    CLIP_H,
    check_size,
    latent_stages,
    plan_latents,
    smoke_latents,
    stable_diffusion,
)


def get_config(size="full"):
    """Returns the config of finetune -> guided -> 256, 128, ..., 2, 1 steps."""
    check_size(size, "full", "base", "stochastic", "plan", "smoke")
    name, side = ("-base", 512) if size == "base" else ("", 768)
    network = dict(heads=(5, 10, 20, 20), linear=True)
    config = stable_diffusion(f"stable-diffusion-2-1{name}", side, **network)
    first = 4 if size == "smoke" else 256
    config.stages = latent_stages(f"teachers/sd21{name}", (2.0, 14.0), size, first=first)
    if size == "plan":
        return plan_latents(config, CLIP_H)
    return smoke_latents(config) if size == "smoke" else config
