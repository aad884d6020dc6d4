"""Emoji with their names, 64x64: text-to-image in the latents of TAEF2, from 32 x 2 calls to 1.

Meng et al. (2023, arXiv:2210.03142), section 5.2 with published parts: latents 8x8x32 of a tiny
autoencoder, and tokens of MiniLM. Both designs of an emoji have one name, so they are in the same
split. All values are ours. Three directories are yours; docs/train.md says where they come from:

    launch/local.sh --config=configs/emoji_guided.py --config.data.path=DIR   # or here, in emoji64,
    launch/local.sh --config=configs/emoji_guided.py:cpu         # taef2, minilm; smaller, for a CPU
    launch/local.sh --config=configs/emoji_guided.py:smoke       # seconds, without directories
"""

from distill_jax.config import base, check_size, halvings, pipeline, smoke, stage


def emoji():
    """Returns `base` for emoji in the latents of TAEF2, with a dit of 10.6 million parameters."""
    config = base()
    config.data = dict(name="captioned_folder", path="emoji64", size=64)
    config.codec = dict(name="taesd", path="taef2")
    config.conditioner = dict(name="pretrained", path="minilm", length=20)
    config.model = dict(name="dit", patch=1, width=256, blocks=8, heads=4)
    config.batch_size, config.optimizer.b2 = 64, 0.99
    config.evaluate.update(w=(0.0, 2.0), num_samples=1000)
    return config


def get_config(size="full"):
    """Returns the config of the chain teacher -> guided -> 4, 2, 1 steps, w in [0, 4]."""
    check_size(size, "full", "cpu", "smoke")
    config, w_range, few = emoji(), (0.0, 4.0), 1 if size == "full" else 60
    ema = dict(ema_decay=0.9995 if size == "full" else 0.95)
    rates = dict(learning_rate=1e-3, warmup=600 // few, decay_to=0.1, **ema)
    guide = dict(learning_rate=3e-4, w_range=w_range, new=("w_embed",), **ema)
    steps = {"default": 4000 // few, 1: 8000 // few}
    halve = dict(learning_rate=2e-4, w_range=w_range, **ema)
    config.stages = pipeline(
        stage("teacher", "diffusion", steps=30_000 // few, num_steps=32, **rates),
        stage("guided", "guided", steps=6000 // few, num_steps=32, **guide),
        *halvings(start=4, end=1, steps=steps, **halve),
    )
    if size == "cpu":
        config.model.update(patch=2, blocks=4)
        config.batch_size = 32
        config.evaluate.num_samples = 200
    if size == "smoke":
        config = smoke(config, width=32, blocks=1)
        config.data = dict(name="shapes", count=64, tests=64)
        config.codec = dict(name="patch_pca", patch=2)
        config.conditioner = dict(name="words", width=32, layers=1, length=16, updates=2)
    return config
