"""Handwritten digits, 8x8: SiD with long and short guidance, kappa 1.5 (w = 0.5), in one call.

Zhou et al. (2024, arXiv:2406.01561). The paper has no digits. Learning rates and updates are ours.
The noise levels are uniform in time between the paper's lowest and highest level.

    launch/local.sh --config=configs/digits_sid_lsg.py            # minutes on two CPU cores
    launch/local.sh --config=configs/digits_sid_lsg.py:smoke      # seconds; draws noise
"""

from distill_jax.config import MATCHING, check_size, digits, digits_teacher, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "smoke")
    config = digits()
    config.stages = pipeline(
        digits_teacher(),
        stage(
            "sid_lsg",
            "sid_lsg",
            steps=1000,
            learning_rate=2e-4,
            ema_decay=0.995,
            fake_updates=2,
            alpha=1.0,
            kappas=1.5,
            levels=("uniform", 0.138, 12.97),
            fake_levels=("uniform", 0.138, 12.97),
            weighting="snr",
            loss_scale=1.0,
            **MATCHING,
        ),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
