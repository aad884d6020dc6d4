"""Emoji with their names, 64x64: DMD2, a student of one call, with a discriminator.

Yin et al. (2024, arXiv:2405.14867), with the parts and the teacher of emoji_guided, and guidance
in the teacher. Learning rates, weights and updates are ours. Not run.

    launch/local.sh --config=configs/emoji_dmd2.py --config.data.path=DIR
    launch/local.sh --config=configs/emoji_dmd2.py:lora       # adapters of rank 8; or :cpu
    launch/local.sh --config=configs/emoji_dmd2.py:smoke      # seconds, without directories
"""

from distill_jax.config import (
    MATCHING,
    check_size,
    emoji,
    emoji_teacher,
    pipeline,
    sized_emoji,
    stage,
)


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "cpu", "lora", "smoke")
    config = emoji()
    config.stages = pipeline(
        emoji_teacher(),
        stage(
            "dmd2",
            "dmd2",
            steps=10_000,
            learning_rate=5e-5,
            ema_decay=0.999,
            lora=8 if size == "lora" else 0,
            fake_updates=2,
            w=2.0,
            gan_weight=3e-3,
            **MATCHING,
        ),
    )
    return sized_emoji(config, size)
