"""Stable Diffusion 3.5 medium, 1024x1024: SwD, a student of 4 calls whose latents grow 64 to 128.

Starodubcev et al. (2025, arXiv:2503.16397), with the settings of the released scripts: times,
sides, losses, rank-64 adapters, AdamW at 5e-6, 5 updates of the fake, w = 6 in DMD, batch 64, 3,000
iterations on images that the teacher drew. Two calls are ours. Latents are made smaller, not
pixels, see docs/reference_differences.md. docs/teachers.md says where the directories come from:

    python -m distill_jax.main --config=configs/sd35m_swd.py:plan --plan_for=8xa100 \
        --config.mesh.fsdp=8    # sizes and memory, without directories
    python -m distill_jax.main --config=configs/sd35m_swd.py --config.mesh.fsdp=8
    python -m distill_jax.main --config=configs/sd35m_swd.py:6    # 6 calls, or :2
    python -m distill_jax.main --config=configs/sd35m_swd.py:smoke    # a small network, on shapes
"""

from distill_jax.config import (
    SD3_TEXT,
    check_size,
    flow_latents,
    plan_scalewise,
    scalewise,
    smoke_scalewise,
)


def get_config(size="full"):
    """Returns the config of the teacher's student of 4 calls, or of 2 or 6."""
    check_size(size, "full", "2", "6", "plan", "smoke")
    config = flow_latents("stable-diffusion-3.5-medium", name="mmdit")
    config.batch_size = 64
    calls = int(size) if size.isdigit() else 2 if size == "smoke" else 4
    config.stages = scalewise("teachers/sd35m", calls, w=6.0, steps=3000)
    if size == "plan":
        return plan_scalewise(config, SD3_TEXT)
    network = dict(name="mmdit", blocks=2, heads=2, head_dim=8, dual=1, places=8, base=4)
    return smoke_scalewise(config, **network) if size == "smoke" else config
