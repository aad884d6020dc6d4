"""Stable Diffusion 1.5 inpainting, 512x512: from 512 x 2 calls to 4, 2 and 1, for w in [2, 14].

Meng et al. (2023, arXiv:2210.03142), section 5.3: the network takes a mask and the masked image
besides the text, which guidance drops. The settings are those of sd15_guided, and as sure as there;
the masks are those of the teacher's training. Not run. Pipeline, pictures and teacher come from
where docs/teachers.md says:

    python -m distill_jax.main --config=configs/sd15_inpaint_guided.py:plan --plan_for=64xh100 \
        --config.mesh.fsdp=8 --config.microbatches=4    # sizes and memory, without directories
    python -m distill_jax.main --config=configs/sd15_inpaint_guided.py --config.mesh.fsdp=8
    python -m distill_jax.edit inpaint --student=runs/sd15_inpaint_guided/s08_n0004 \
        --images=DIR --mask=mask.png --prompt="a red bench" --w=6
    python -m distill_jax.main --config=configs/sd15_inpaint_guided.py:smoke    # small, on shapes
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
    check_size(size, "full", "plan", "smoke")
    config = stable_diffusion("stable-diffusion-inpainting", size=512)
    config.masks.name = "random"
    first = 4 if size == "smoke" else 256
    config.stages = latent_stages("teachers/sd15_inpaint", (2.0, 14.0), size, first=first)
    if size == "plan":
        return plan_latents(config, CLIP_L)
    return smoke_latents(config) if size == "smoke" else config
