"""Stable Diffusion 2.1 base, 512x512: SiD-LSG, a student of one call, from prompts without images.

Zhou et al. (2024, arXiv:2406.01561), with the settings and the precision of sd15_sid_lsg; kappa and
images are those of their students of this model, which predicts eps. Not run. docs/teachers.md says
where the directories come from:

    python -m distill_jax.main --config=configs/sd21_sid_lsg.py:plan --plan_for=64xh100 \
        --config.mesh.fsdp=8    # sizes and memory, without directories
    python -m distill_jax.main --config=configs/sd21_sid_lsg.py --config.mesh.fsdp=8
    python -m distill_jax.main --config=configs/sd21_sid_lsg.py:kappa_3    # or kappa_2, kappa_4.5
    python -m distill_jax.main --config=configs/sd21_sid_lsg.py:smoke    # small, on shapes
"""

from distill_jax.config import (
    CLIP_H,
    check_size,
    from_prompts,
    lsg_stages,
    plan_latents,
    smoke_latents,
)

# kappa, and the images that the student drew in training, from the names of released checkpoints.
KAPPAS = {
    "full": (1.5, 9_728_000),
    "kappa_2": (2.0, 8_482_000),
    "kappa_3": (3.0, 6_144_000),
    "kappa_4.5": (4.5, 7_168_000),
}


def get_config(size="full"):
    """Returns the config of the imported teacher's student of one call, w = kappa - 1."""
    check_size(size, *KAPPAS, "plan", "smoke")
    kappa, images = KAPPAS.get(size, KAPPAS["full"])
    network = dict(heads=(5, 10, 20, 20), linear=True)
    config = from_prompts("stable-diffusion-2-1-base", size=512, w=kappa - 1, **network)
    config.stages = lsg_stages("teachers/sd21-base", kappa, images)
    if size == "plan":
        return plan_latents(config, CLIP_H)
    return smoke_latents(config) if size == "smoke" else config
