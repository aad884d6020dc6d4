"""Handwritten digits, 8x8: BOOT, a one-call student that trains without data.

Gu et al. (2023, arXiv:2306.05544). The paper has no digits; every number here is ours.

    launch/local.sh --config=configs/digits_boot.py            # minutes on two CPU cores
    launch/local.sh --config=configs/digits_boot.py:smoke      # seconds; draws noise
"""

from distill_jax.config import check_size, digits, digits_teacher, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "smoke")
    config = digits()
    config.stages = pipeline(
        digits_teacher(),
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
