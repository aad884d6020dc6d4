"""Emoji with their names, 64x64: SiD-LSG, a student of one call, from the names without pictures.

Zhou et al. (2024, arXiv:2406.01561), with the parts and the teacher of emoji_guided; kappa is 3 in
all four places, so w = 2. Learning rates and updates are ours. Full size not run.

    launch/local.sh --config=configs/emoji_sid_lsg.py --config.data.path=DIR
    launch/local.sh --config=configs/emoji_sid_lsg.py:lora       # adapters of rank 8; or :cpu
    launch/local.sh --config=configs/emoji_sid_lsg.py:smoke      # seconds, without directories
"""

from distill_jax.config import (
    LSG,
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
            "sid_lsg",
            "sid_lsg",
            steps=10_000,
            learning_rate=5e-5,
            ema_decay=0.999,
            lora=8 if size == "lora" else 0,
            fake_updates=2,
            kappas=3.0,
            **LSG,
            **MATCHING,
        ),
    )
    return sized_emoji(config, size)
