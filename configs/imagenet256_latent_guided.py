"""ImageNet 256x256 in latents: from 512 x 2 calls of DiT-XL/2 to 4, 2 and 1, for w in [0, 14].

Meng et al. (2023, arXiv:2210.03142), section 5.2, whose network was that of latent diffusion
(Rombach et al. 2022); here it is DiT-XL/2 (Peebles & Xie 2023, arXiv:2212.09748), as diffusers has
it. The paper's text was not at hand: batch, w, v and the updates of stage 1 and of the rounds are
from memory, the updates those of Stable Diffusion; learning rates, EMA and the updates of the
fine-tuning are ours. DiT's schedule ends at alpha 0.006, and stays. Not run.

    python -m distill_jax.main --config=configs/imagenet256_latent_guided.py:plan \
        --plan_for=64xh100 --config.mesh.fsdp=8    # sizes and memory, without directories
    python -m distill_jax.teachers diffusers DiT-XL-2-256 --out=teachers/dit256
    python -m distill_jax.main --config=configs/imagenet256_latent_guided.py --config.mesh.fsdp=8
    python -m distill_jax.main --config=configs/imagenet256_latent_guided.py:stochastic
    python -m distill_jax.main --config=configs/imagenet256_latent_guided.py:smoke    # fake data
"""

from distill_jax.config import (
    check_size,
    latent_stages,
    latents,
    plan_latents,
    smoke_latents,
)


def get_config(size="full"):
    """Returns the config of finetune -> guided -> 256, 128, ..., 2, 1 steps."""
    check_size(size, "full", "stochastic", "plan", "smoke")
    config = latents(name="diffusers_dit")
    source = dict(name="tfds", dataset="imagenet2012", data_dir="", splits=("train", "validation"))
    config.data = dict(size=256, num_labels=1000, resize="adm", **source)
    config.codec.path = "DiT-XL-2-256"
    config.schedule = dict(name="ddpm", beta_min=1e-4, beta_max=0.02, num_steps=1000)
    config.evaluate.w = (0.0, 2.0, 4.0)
    first = 4 if size == "smoke" else 256
    config.stages = latent_stages("teachers/dit256", (0.0, 14.0), size, ("w_embed",), first)
    if size == "plan":
        return plan_latents(config)
    return smoke_latents(config) if size == "smoke" else config
