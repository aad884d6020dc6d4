"""Captioned scenes of shapes, 16x16: DMD2, a one-call student by distribution matching.

Yin et al. (2024, arXiv:2405.14867), with guidance in the teacher. Learning rates and updates are
ours.

    launch/local.sh --config=configs/shapes_dmd2.py            # minutes on two CPU cores
    launch/local.sh --config=configs/shapes_dmd2.py:lora       # adapters of rank 8
    launch/local.sh --config=configs/shapes_dmd2.py:smoke      # seconds; draws noise
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
            "dmd2",
            "dmd2",
            steps=500,
            learning_rate=2e-4,
            ema_decay=0.99,
            lora=8 if size == "lora" else 0,
            fake_updates=2,
            w=2.0,
            gan_weight=3e-3,
            **MATCHING,
        ),
    )
    return smoke_shapes(config) if size == "smoke" else config
