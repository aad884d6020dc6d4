"""Captioned scenes of shapes, 16x16: SiD-LSG, a one-call student by score identity, from prompts.

Zhou et al. (2024, arXiv:2406.01561). kappa is 3 in all four places, so the student has w = 2.
Learning rates and updates are ours.

    launch/local.sh --config=configs/shapes_sid_lsg.py            # minutes on two CPU cores
    launch/local.sh --config=configs/shapes_sid_lsg.py:lora       # adapters of rank 8
    launch/local.sh --config=configs/shapes_sid_lsg.py:smoke      # seconds; draws noise
"""

from distill_jax.config import (
    MATCHING,
    check_size,
    pipeline,
    shapes,
    shapes_teacher,
    smoke_shapes,
    stage,
)


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "lora", "smoke")
    config = shapes()
    config.stages = pipeline(
        shapes_teacher(),
        stage(
            "sid_lsg",
            "sid_lsg",
            steps=400,
            learning_rate=2e-4,
            ema_decay=0.99,
            lora=8 if size == "lora" else 0,
            fake_updates=2,
            kappas=3.0,
            levels=("uniform", 0.138, 12.97),
            fake_levels=("uniform", 0.138, 12.97),
            weighting="snr",
            loss_scale=1.0,
            **MATCHING,
        ),
    )
    return smoke_shapes(config) if size == "smoke" else config
