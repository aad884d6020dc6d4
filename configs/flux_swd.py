"""FLUX.1 dev, 1024x1024: SwD, a student of 4 calls whose latents grow from 64 to 128.

Starodubcev et al. (2025, arXiv:2503.16397). Times and sides are those of the released README; the
paper has others. Adapters of rank 128, batch 24 and guidance of 4.5 inside the network (w = 3.5,
none in DMD) are published; learning rate, losses and iterations are those of Stable Diffusion 3.5
large. The features are those of block 28 of 57. The licence of dev allows no commercial use.

    python -m distill_jax.main --config=configs/flux_swd.py:plan --plan_for=8xh100 \
        --config.mesh.fsdp=8    # sizes and memory, without directories
    python -m distill_jax.teachers diffusers FLUX.1-dev --out=teachers/flux --set w=3.5 \
        --set resolutions=[64,80,96,128]
    python -m distill_jax.main --config=configs/flux_swd.py --config.mesh.fsdp=8
    python -m distill_jax.main --config=configs/flux_swd.py:smoke    # a small network, on shapes
"""

from distill_jax.config import (
    FLUX_TEXT,
    check_size,
    flow_latents,
    plan_scalewise,
    scalewise,
    smoke_scalewise,
)

SHIFT = 3.158193  # exp(1.15): FLUX's at 1024 pixels.


def get_config(size="full"):
    """Returns the config of the teacher's student of 4 calls."""
    check_size(size, "full", "plan", "smoke")
    config = flow_latents("FLUX.1-dev", SHIFT, name="flux")
    config.batch_size = 24
    calls = 2 if size == "smoke" else 4
    config.stages = scalewise("teachers/flux", calls, SHIFT, lora=128, steps=4000)
    if size == "plan":
        return plan_scalewise(config, FLUX_TEXT)
    network = dict(name="flux", blocks=1, singles=1, heads=2, head_dim=8, axes=(2, 2, 4))
    return smoke_scalewise(config, **network) if size == "smoke" else config
