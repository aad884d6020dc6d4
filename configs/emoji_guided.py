"""Emoji with their names, 64x64: text-to-image in the latents of TAEF2, from 32 x 2 calls to 1.

Meng et al. (2023, arXiv:2210.03142), section 5.2 with published parts: latents 8x8x32 of a tiny
autoencoder, and tokens of MiniLM. Both designs of an emoji have one name, so they are in the same
split. All values are ours. Three directories are yours; docs/train.md says where they come from:

    launch/local.sh --config=configs/emoji_guided.py --config.data.path=DIR   # or here, in emoji64,
    launch/local.sh --config=configs/emoji_guided.py:cpu         # taef2, minilm; smaller, for a CPU
    launch/local.sh --config=configs/emoji_guided.py:smoke       # seconds, without directories
"""

from distill_jax.config import (
    check_size,
    emoji,
    emoji_teacher,
    halvings,
    pipeline,
    sized_emoji,
    stage,
)


def get_config(size="full"):
    """Returns the config of the chain teacher -> guided -> 4, 2, 1 steps, w in [0, 4]."""
    check_size(size, "full", "cpu", "smoke")
    config, both = emoji(), dict(w_range=(0.0, 4.0), ema_decay=0.9995)
    guide = dict(steps=6000, learning_rate=3e-4, num_steps=32, new=("w_embed",))
    halve = dict(steps={"default": 4000, 1: 8000}, learning_rate=2e-4)
    config.stages = pipeline(
        emoji_teacher(),
        stage("guided", "guided", **guide, **both),
        *halvings(start=4, end=1, **halve, **both),
    )
    return sized_emoji(config, size)
