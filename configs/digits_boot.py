"""Handwritten digits, 8x8: BOOT, a one-call student that trains without data.

Gu et al. (2023, arXiv:2306.05544). The paper has no digits; every number here is ours.

    launch/local.sh --config=configs/digits_boot.py            # minutes on two CPU cores
    launch/local.sh --config=configs/digits_boot.py:smoke      # seconds; draws noise
"""

from distill_jax.config import base, check_size, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "smoke")
    config = base()
    config.data.name = "digits"
    config.model.update(name="mlp", width=256, blocks=3, expand=2)
    config.batch_size = 256
    config.optimizer.b2 = 0.99
    config.stages = pipeline(
        stage(
            "teacher", "diffusion", steps=2500, learning_rate=1e-3, ema_decay=0.995, num_steps=64
        ),
        stage(
            "boot",
            "boot",
            steps=2000,
            learning_rate=1e-3,
            ema_decay=0.995,
            new=("target_embed",),
            delta=0.04,
            solver="heun",
        ),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
