"""Discs and squares, 8x8: your own dataset, network and method, from teacher to one-call student.

    python -m distill_jax.main --config=examples/my_config.py          # minutes on two CPU cores
    python -m distill_jax.main --config=examples/my_config.py:smoke    # seconds; draws noise
    python -m distill_jax.sample --student=runs/my_config --allow=examples.my_network:convolutions

The names are imported, so start the commands in the folder that contains `examples`.
"""

from distill_jax.config import base, check_size, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "smoke")
    config = base()
    config.data = {"name": "examples.my_dataset:Shapes", "size": 8}
    config.model = {"name": "examples.my_network:convolutions", "width": 32, "blocks": 3}
    config.batch_size = 64
    rates = dict(learning_rate=1e-3, ema_decay=0.99)
    config.stages = pipeline(
        stage("teacher", "diffusion", steps=1500, num_steps=32, **rates),
        stage("direct", "examples.my_method:Direct", teacher_steps=8, steps=1000, **rates),
    )
    return config if size == "full" else smoke(config, width=8, blocks=1)
