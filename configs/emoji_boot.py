"""Emoji with their names, 64x64: BOOT, a student of one call, from the names without pictures.

Gu et al. (2023, arXiv:2306.05544), with the parts and the teacher of emoji_guided, and guidance in
the teacher. All numbers are ours. Not run.

    launch/local.sh --config=configs/emoji_boot.py --config.data.path=DIR
    launch/local.sh --config=configs/emoji_boot.py:lora       # adapters of rank 8; or :cpu
    launch/local.sh --config=configs/emoji_boot.py:smoke      # seconds, without directories
"""

from distill_jax.config import check_size, emoji, emoji_teacher, pipeline, sized_emoji, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "cpu", "lora", "smoke")
    config = emoji()
    config.stages = pipeline(
        emoji_teacher(),
        stage(
            "boot",
            "boot",
            steps=20_000,
            learning_rate=3e-4,
            warmup=600,
            ema_decay=0.9995,
            lora=8 if size == "lora" else 0,
            new=("target_embed",),
            w=2.0,
            delta=0.04,
            solver="euler",
        ),
    )
    return sized_emoji(config, size)
