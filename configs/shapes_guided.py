"""Captioned scenes of shapes, 16x16: text-to-image in latent space, from 32 x 2 calls to 1.

Meng et al. (2023, arXiv:2210.03142), section 5.2 in small: a closed-form codec, a frozen text
encoder, a teacher with guidance, and students in 4, 2 and 1 steps. All values are ours.

    launch/local.sh --config=configs/shapes_guided.py            # minutes on two CPU cores
    launch/local.sh --config=configs/shapes_guided.py:smoke      # seconds; draws noise
"""

from distill_jax.config import (
    check_size,
    halvings,
    pipeline,
    shapes,
    shapes_teacher,
    smoke_shapes,
    stage,
)


def get_config(size="full"):
    """Returns the config of the chain teacher -> guided -> 16, 8, 4, 2, 1 steps, w in [0, 4]."""
    check_size(size, "full", "smoke")
    config, w_range = shapes(), (0.0, 4.0)
    guide = dict(learning_rate=1e-3, ema_decay=0.99, w_range=w_range, new=("w_embed",))
    steps = {"default": 260, 16: 200, 8: 200, 1: 400}
    halve = dict(learning_rate=5e-4, ema_decay=0.98, w_range=w_range)
    config.stages = pipeline(
        shapes_teacher(),
        stage("guided", "guided", steps=400, num_steps=32, **guide),
        *halvings(start=16, end=1, steps=steps, **halve),
    )
    return config if size == "full" else smoke_shapes(config)
