"""Captioned scenes of shapes, 16x16: text-to-image in latent space, from 32 x 2 calls to 1.

Meng et al. (2023, arXiv:2210.03142), section 5.2 in small: a closed-form codec, a frozen text
encoder, a teacher with guidance, and students in 4, 2 and 1 steps. All values are ours.

    launch/local.sh --config=configs/shapes_guided.py            # minutes on two CPU cores
    launch/local.sh --config=configs/shapes_guided.py:smoke      # seconds; draws noise
"""

from distill_jax.config import base, check_size, halvings, pipeline, smoke, stage


def shapes():
    """Returns `base` for captioned shapes in latents 8x8x6, with a dit."""
    config = base()
    config.data.name = "shapes"
    config.codec = dict(name="patch_pca", patch=2, channels=6, power=0.5)
    config.conditioner = dict(name="words", width=128, length=10)
    config.model = dict(name="dit", patch=2, width=128, blocks=4, heads=4, expand=3)
    config.batch_size, config.updates_per_call, config.optimizer.b2 = 64, 10, 0.99
    config.evaluate.update(w=(0.0, 2.0, 4.0), num_samples=500)
    return config


def get_config(size="full"):
    """Returns the config of the chain teacher -> guided -> 4, 2, 1 steps, w in [0, 4]."""
    check_size(size, "full", "smoke")
    config, w_range = shapes(), (0.0, 4.0)
    rates = dict(learning_rate=2e-3, warmup=100, ema_decay=0.995)
    guide = dict(learning_rate=1e-3, ema_decay=0.99, w_range=w_range, new=("w_embed",))
    steps = {"default": 260, 1: 400}
    halve = dict(learning_rate=5e-4, ema_decay=0.99, w_range=w_range)
    config.stages = pipeline(
        stage("teacher", "diffusion", steps=2200, num_steps=32, **rates),
        stage("guided", "guided", steps=400, num_steps=32, **guide),
        *halvings(start=4, end=1, steps=steps, **halve),
    )
    if size == "full":
        return config
    config = smoke(config, width=32, blocks=1)
    config.data.update(count=64, tests=64)
    config.conditioner.update(width=32, layers=1, updates=2)
    config.updates_per_call = 1
    return config
