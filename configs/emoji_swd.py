"""Emoji with their names, 64x64: SwD, a student of three calls at 4x4, 6x6 and 8x8 latents.

Starodubcev et al. (2025, arXiv:2503.16397), with the parts of emoji_guided. The network is a small
transformer of the kind of Stable Diffusion 3 (mmdit), on a rectified flow, and the teacher is
trained at all three sizes. Losses are from the released code, the rest is ours. Not run.

    launch/local.sh --config=configs/emoji_swd.py --config.data.path=DIR
    launch/local.sh --config=configs/emoji_swd.py:lora       # adapters of rank 8; or :cpu
    launch/local.sh --config=configs/emoji_swd.py:smoke      # seconds, without directories
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
    """Returns the config of the chain teacher at three sizes -> three calls, small to large."""
    check_size(size, "full", "cpu", "lora", "smoke")
    network = dict(patch=1, blocks=4, heads=4, head_dim=64, dual=0, places=8, base=8)
    config, sides = emoji(name="mmdit", **network), (4, 6, 8)
    config.schedule, config.parameterization = {"name": "rectified_flow"}, "flow"
    config.stages = pipeline(
        emoji_teacher(resolutions=sides),
        stage(
            "swd",
            "swd",
            steps=10_000,
            learning_rate=5e-5,
            ema_decay=0.999,
            lora=8 if size == "lora" else 0,
            times=(1.0, 0.85, 0.6),
            resolutions=sides,
            w=2.0,
            **MATCHING,
        ),
    )
    return sized_emoji(config, size)
