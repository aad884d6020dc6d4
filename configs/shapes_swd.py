"""Captioned scenes of shapes, 16x16: SwD, a student with calls at 4x4 and 8x8 latents.

Starodubcev et al. (2025, arXiv:2503.16397). The teacher is trained on at both sizes first, because
its own training had 8x8 latents only. Losses are from the released code, the rest is ours.

    launch/local.sh --config=configs/shapes_swd.py            # minutes on two CPU cores
    launch/local.sh --config=configs/shapes_swd.py:lora       # adapters of rank 8
    launch/local.sh --config=configs/shapes_swd.py:smoke      # seconds; draws noise
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
    """Returns the config of the chain teacher -> teacher at two sizes -> two calls."""
    check_size(size, "full", "lora", "smoke")
    config = shapes()
    student = dict(steps=400, learning_rate=3e-4, ema_decay=0.99, times=(1.0, 0.5), fake_updates=3)
    student.update({name: ("uniform", 0.009, 3.77) for name in ("dmd_levels", "mmd_levels")})
    config.stages = pipeline(
        shapes_teacher(),
        stage(
            "sizes",
            "diffusion",
            init="teacher",
            steps=600,
            learning_rate=1e-3,
            ema_decay=0.99,
            num_steps=32,
            resolutions=(4, 8),
        ),
        stage(
            "swd",
            "swd",
            resolutions=(4, 8),
            lora=8 if size == "lora" else 0,
            w=2.0,
            fake_levels=("uniform", 0.009, 1000.0),
            **student,
            **MATCHING,
        ),
    )
    return smoke_shapes(config) if size == "smoke" else config
