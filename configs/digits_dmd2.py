"""Handwritten digits, 8x8: DMD2, a one-call student by distribution matching and a discriminator.

Yin et al. (2024, arXiv:2405.14867). The paper has no digits; learning rates and updates are ours.

    launch/local.sh --config=configs/digits_dmd2.py            # minutes on two CPU cores
    launch/local.sh --config=configs/digits_dmd2.py:smoke      # seconds; draws noise
"""

from distill_jax.config import MATCHING, check_size, digits, digits_teacher, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "smoke")
    config = digits()
    config.stages = pipeline(
        digits_teacher(),
        stage(
            "dmd2",
            "dmd2",
            steps=1000,
            learning_rate=2e-4,
            ema_decay=0.995,
            fake_updates=2,
            gan_weight=3e-3,
            discriminator="pooled",  # An MLP has features at one position only.
            **MATCHING,
        ),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
