"""Handwritten digits, 8x8: guided distillation from 64 x 2 network calls to 1, on a laptop.

Meng et al. (2023, arXiv:2210.03142) on the 1,797 real images that come with scikit-learn.

    launch/local.sh --config=configs/digits_guided.py            # minutes on two CPU cores
    launch/local.sh --config=configs/digits_guided.py:smoke      # seconds; draws noise
"""

from distill_jax.config import check_size, digits, digits_teacher, halvings, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> guided -> 32, ..., 2, 1 steps, w in [0, 4]."""
    check_size(size, "full", "smoke")
    config = digits()
    w_range = (0.0, 4.0)
    config.stages = pipeline(
        digits_teacher(),
        stage(
            "guided",
            "guided",
            steps=3000,
            learning_rate=5e-4,
            ema_decay=0.995,
            w_range=w_range,
            num_steps=64,
            new=("w_embed",),
        ),
        *halvings(
            start=32,
            end=1,
            steps={"default": 200, 4: 400, 2: 500, 1: 800},
            learning_rate=5e-4,
            ema_decay=0.98,
            w_range=w_range,
        ),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
