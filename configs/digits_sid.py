"""Handwritten digits, 8x8: SiD, a one-call student by score identity, without data.

Zhou et al. (2024, arXiv:2404.04057). `:sida` adds a discriminator, with data: Zhou et al. (2024,
arXiv:2410.14919). The papers have no digits; learning rates, updates, alpha and the weight of the
discriminator's loss are ours.

    launch/local.sh --config=configs/digits_sid.py            # minutes on two CPU cores
    launch/local.sh --config=configs/digits_sid.py:smoke      # seconds; draws noise
"""

from distill_jax.config import MATCHING, check_size, digits, digits_teacher, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "sida", "smoke")
    adversarial = dict(gan_weight=0.01, discriminator_weight=1.0) if size == "sida" else {}
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
            **adversarial,
            **MATCHING,
        ),
    )
    return smoke(config, width=32, blocks=1) if size == "smoke" else config
