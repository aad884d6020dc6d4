"""SDXL, 1024x1024: SwD, a student of 4 calls whose latents grow from 64 to 128.

Starodubcev et al. (2025, arXiv:2503.16397). Times, sides, rank, batch and the loss are published:
MMD only, because SDXL cannot draw small images, on features of the frozen teacher, which equal the
released ones without DMD. Learning rate and iterations are those of Stable Diffusion 3.5 medium.
The images are the teacher's at w = 6.5 in 50 steps, without the refiner of the paper. Not run.

    python -m distill_jax.main --config=configs/sdxl_swd.py:plan --plan_for=8xa100 \
        --config.mesh.fsdp=8    # sizes and memory, without directories
    python -m distill_jax.main --config=configs/sdxl_swd.py --config.mesh.fsdp=8
    python -m distill_jax.main --config=configs/sdxl_swd.py:smoke    # a small network, on shapes
"""

from distill_jax.config import (
    SDXL_TEXT,
    check_size,
    plan_scalewise,
    scalewise,
    smoke_scalewise,
    stable_diffusion,
)


def get_config(size="full"):
    """Returns the config of the teacher's student of 4 calls."""
    check_size(size, "full", "plan", "smoke")
    levels = dict(widths=(320, 640, 1280), transformers=(1, 2), heads=(5, 10, 20))
    blocks = dict(depths=(1, 2, 10), size_channels=256, linear=True)
    config = stable_diffusion("stable-diffusion-xl-base-1.0", size=1024, **levels, **blocks)
    config.schedule.zero_snr, config.parameterization = False, "eps"  # Those of the teacher.
    config.data.path, config.batch_size, config.evaluate.w = "samples", 64, (0.0,)
    config.optimizer.clip_norm = 10.0
    config.stages = scalewise(
        "teachers/sdxl",
        2 if size == "smoke" else 4,
        steps=3000,
        times=(1.0, 0.8, 0.6, 0.4),
        dmd_weight=0.0,
        gan_weight=0.0,
        mmd_features="teacher",
        mmd_levels=("scaled_linear", 0.0292, 1.161),  # Indices 0 to 400 of 0 to 999.
    )
    if size == "plan":
        return plan_scalewise(config, SDXL_TEXT, channels=4)
    network = dict(name="sd_unet", widths=(16,), blocks=1, transformers=(), heads=(2,), groups=8)
    return smoke_scalewise(config, **network) if size == "smoke" else config
