"""Handwritten digits, 8x8: guided distillation from 64 x 2 network calls to 1, on a laptop.

Meng et al. (2023, arXiv:2210.03142) on the 1,797 real images that come with scikit-learn.

    launch/local.sh --config=configs/digits_guided.py            # minutes on two CPU cores
    launch/local.sh --config=configs/digits_guided.py:smoke      # seconds; draws noise
"""

from distill_jax.config import base, check_size, halvings, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> guided -> 32, ..., 2, 1 steps, w in [0, 4]."""
    check_size(size, "full", "smoke")
    config = base()
    config.data.name = "digits"
    config.model.update(name="mlp", width=256, blocks=3, expand=2)
    config.batch_size = 256
    config.optimizer.b2 = 0.99
    w_range = (0.0, 4.0)
    config.stages = pipeline(
        stage(
            "teacher", "diffusion", steps=2500, learning_rate=1e-3, ema_decay=0.995, num_steps=64
        ),
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
