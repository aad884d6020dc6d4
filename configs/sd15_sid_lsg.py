"""Stable Diffusion 1.5, 512x512: SiD-LSG, a student of one call, from prompts without images.

Zhou et al. (2024, arXiv:2406.01561), from their released code: kappa in all four places, alpha 1,
batch 512, Adam (0, 0.999) at 1e-6, EMA, noise of the steps 20 to 979 of 1000, the call at step 625
(sigma_init 2.5), images by kappa. They train in float32, and report worse results in float16. Here
networks compute in bfloat16, with parameters, losses and EMA in float32:
`--config.model.dtype=float32 --config.frozen_dtype=float32 --config.matmul_precision=highest` is
theirs. The times of `4_calls` are ours (arXiv:2505.12674 has the method). Not run.
docs/teachers.md says where the directories come from:

    python -m distill_jax.main --config=configs/sd15_sid_lsg.py:plan --plan_for=64xh100 \
        --config.mesh.fsdp=8    # sizes and memory, without directories
    python -m distill_jax.main --config=configs/sd15_sid_lsg.py --config.mesh.fsdp=8
    python -m distill_jax.main --config=configs/sd15_sid_lsg.py:kappa_3    # kappa_2, kappa_4.5
    python -m distill_jax.main --config=configs/sd15_sid_lsg.py:4_calls    # a few-step student
    python -m distill_jax.main --config=configs/sd15_sid_lsg.py:smoke    # small, on shapes
"""

from distill_jax.config import (
    CLIP_L,
    check_size,
    from_prompts,
    lsg_stages,
    plan_latents,
    smoke_latents,
)

# kappa, and the images that the student drew in training, from the names of released checkpoints.
KAPPAS = {
    "full": (1.5, 8_806_000),
    "kappa_2": (2.0, 4_812_000),
    "kappa_3": (3.0, 6_349_000),
    "kappa_4.5": (4.5, 8_380_000),
    "4_calls": (1.5, 8_806_000),
}


def get_config(size="full"):
    """Returns the config of the imported teacher's student of one call, w = kappa - 1."""
    check_size(size, *KAPPAS, "plan", "smoke")
    kappa, images = KAPPAS.get(size, KAPPAS["full"])
    config = from_prompts("stable-diffusion-v1-5", size=512, w=kappa - 1)
    times = (0.626, 0.47, 0.313, 0.157) if size == "4_calls" else ()
    config.stages = lsg_stages("teachers/sd15", kappa, images, times)
    if size == "plan":
        return plan_latents(config, CLIP_L)
    return smoke_latents(config) if size == "smoke" else config
