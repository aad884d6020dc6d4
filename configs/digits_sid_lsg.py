"""Handwritten digits, 8x8: SiD with long and short guidance, kappa 1.5 (w = 0.5), in one call.

Zhou et al. (2024, arXiv:2406.01561). The paper has no digits. Learning rates and updates are ours.
The noise levels are uniform in time between the paper's lowest and highest level.

    launch/local.sh --config=configs/digits_sid_lsg.py            # minutes on two CPU cores
    launch/local.sh --config=configs/digits_sid_lsg.py:smoke      # seconds; draws noise
"""

from distill_jax.config import base, check_size, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "smoke")
    config = base()
    config.data.name = "digits"
    config.model.update(name="mlp", width=256, blocks=3, expand=2)
    config.batch_size = 256
    config.optimizer.b2 = 0.99
    config.stages = pipeline(
        stage(
            "teacher", "diffusion", steps=2500, learning_rate=1e-3, ema_decay=0.995, num_steps=64
        ),
        stage(
            "sid_lsg",
            "sid_lsg",
            steps=1000,
            learning_rate=2e-4,
            ema_decay=0.995,
            ema_ramp=0.05,
            optimizer={"b1": 0.0, "b2": 0.999, "clip_norm": 0.0},
            fake_updates=2,
            alpha=1.0,
            kappas=1.5,
            levels=("uniform", 0.138, 12.97),
            fake_levels=("uniform", 0.138, 12.97),
            weighting="snr",
            loss_scale=1.0,
        ),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
