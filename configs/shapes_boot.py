"""Captioned scenes of shapes, 16x16: BOOT, a one-call student by bootstrapping, from prompts.

Gu et al. (2023, arXiv:2306.05544), with guidance in the teacher. All numbers are ours.

    launch/local.sh --config=configs/shapes_boot.py            # minutes on two CPU cores
    launch/local.sh --config=configs/shapes_boot.py:lora       # adapters of rank 8
    launch/local.sh --config=configs/shapes_boot.py:smoke      # seconds; draws noise
"""

from distill_jax.config import (
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
            "boot",
            "boot",
            steps=700,
            learning_rate=1e-3,
            ema_decay=0.99,
            lora=8 if size == "lora" else 0,
            new=("target_embed",),
            w=2.0,
            delta=0.04,
            solver="euler",
        ),
    )
    return smoke_shapes(config) if size == "smoke" else config
