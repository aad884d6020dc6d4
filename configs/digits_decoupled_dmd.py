"""Handwritten digits, 8x8: Decoupled DMD at w = 1, a student of two calls.

Liu et al. (2025, arXiv:2511.22677). The paper has no digits; learning rates, updates and times are
ours. Augmentation draws all noise levels: on digits the paper's, up to the student's, is worse.

    launch/local.sh --config=configs/digits_decoupled_dmd.py            # minutes on two CPU cores
    launch/local.sh --config=configs/digits_decoupled_dmd.py:smoke      # seconds; draws noise
"""

from distill_jax.config import MATCHING, check_size, digits, digits_teacher, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> two calls."""
    check_size(size, "full", "smoke")
    config = digits()
    config.evaluate.w = (1.0,)
    config.stages = pipeline(
        digits_teacher(),
        stage(
            "decoupled_dmd",
            "decoupled_dmd",
            steps=1000,
            learning_rate=2e-4,
            ema_decay=0.995,
            times=(1.0, 0.5),
            w=1.0,
            focused=False,
            fake_updates=2,
            **MATCHING,
        ),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
