"""Handwritten digits, 8x8: SiD, a one-call student by score identity, without data.

Zhou et al. (2024, arXiv:2404.04057). The paper has no digits; learning rates, updates and alpha are
ours.

    launch/local.sh --config=configs/digits_sid.py            # minutes on two CPU cores
    launch/local.sh --config=configs/digits_sid.py:smoke      # seconds; draws noise
"""

from distill_jax.config import MATCHING, check_size, digits, digits_teacher, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "smoke")
    config = digits()
    config.stages = pipeline(
        digits_teacher(),
        stage(
            "sid",
            "sid_lsg",
            steps=1000,
            learning_rate=2e-4,
            ema_decay=0.995,
            fake_updates=2,
            alpha=1.0,
            **MATCHING,
        ),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
