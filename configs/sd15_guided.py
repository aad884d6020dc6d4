"""Stable Diffusion 1.5, 512x512: from 512 x 2 calls to 4, 2 and 1, for w in [2, 14].

Meng et al. (2023, arXiv:2210.03142), section 5.2: fine-tuning to v, one network that takes w, then
halvings. The paper's text was not at hand: batch, w, v and the updates of stage 1 and of the rounds
are from memory; learning rates, EMA, the updates of the fine-tuning and the terminal SNR of zero
are ours. Published, as InstaFlow quotes it: FID 37.2, 26.0, 26.4 in 1, 2, 4 steps, on 5,000 images
of COCO 2017. Not run. docs/teachers.md says where pipeline, pictures and teacher come from:

    python -m distill_jax.main --config=configs/sd15_guided.py:plan --plan_for=64xh100 \
        --config.mesh.fsdp=8 --config.microbatches=4    # sizes and memory, without directories
    python -m distill_jax.main --config=configs/sd15_guided.py --config.mesh.fsdp=8
    python -m distill_jax.main --config=configs/sd15_guided.py:stochastic    # its sampler, to 2
    python -m distill_jax.main --config=configs/sd15_guided.py:two_students  # the paper's baseline
    python -m distill_jax.main --config=configs/sd15_guided.py:smoke    # a small network, on shapes
"""

from distill_jax.config import (
    CLIP_L,
    check_size,
    latent_stages,
    plan_latents,
    smoke_latents,
    stable_diffusion,
)


def get_config(size="full"):
    """Returns the config of finetune -> guided -> 256, 128, ..., 2, 1 steps."""
    check_size(size, "full", "stochastic", "two_students", "plan", "smoke")
    config = stable_diffusion("stable-diffusion-v1-5", size=512)
    first = 4 if size == "smoke" else 256
    config.stages = latent_stages("teachers/sd15", (2.0, 14.0), size, first=first)
    if size == "plan":
        return plan_latents(config, CLIP_L)
    return smoke_latents(config) if size == "smoke" else config
