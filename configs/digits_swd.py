"""Handwritten digits: SwD, a student with calls at 4x4 and 8x8 pixels, and one with two at 8x8.

Starodubcev et al. (2025, arXiv:2503.16397). The paper has no digits. Resolutions and times are from
`python -m distill_jax.spectrum --config=configs/digits_swd.py --resolutions=4,8`; losses and their
weights are from the released code. Noise levels are uniform in time between the ends of the
released grid, because its own distribution gives worse digits (docs/results.md).

    launch/local.sh --config=configs/digits_swd.py            # minutes on two CPU cores
    launch/local.sh --config=configs/digits_swd.py:smoke      # seconds; draws noise
"""

from distill_jax.config import MATCHING, check_size, digits, digits_teacher, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of a teacher at both resolutions and its two students of two calls."""
    check_size(size, "full", "smoke")
    config = digits(name="dit", patch=2, width=64, blocks=3, heads=2, expand=4, remat="none")
    config.batch_size = 64
    config.evaluate.w = (0.0,)
    student = dict(
        teacher="teacher",
        steps=1500,
        learning_rate=3e-4,
        ema_decay=0.99,
        times=(1.0, 0.5),
        dmd_levels=("uniform", 0.009, 3.77),
        mmd_levels=("uniform", 0.009, 1.51),
        fake_levels=("uniform", 0.009, 1000.0),
        fake_updates=3,
        **MATCHING,
    )
    config.stages = pipeline(
        digits_teacher(steps=6000, resolutions=(4, 8)),
        stage("full_size", "swd", resolutions=(8, 8), **student),
        stage("swd", "swd", resolutions=(4, 8), **student),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
