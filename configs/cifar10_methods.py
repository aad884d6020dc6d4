"""CIFAR-10, class-conditional: progressive, guided, SiD and DMD2 students of one small teacher.

Salimans & Ho (2022, arXiv:2202.00512), Meng et al. (2023, arXiv:2210.03142), SiD (2404.04057), DMD2
(2405.14867). The networks work on 16x16 latents, patches of 2x2 pixels, and all values are ours.

    python -m distill_jax.main --config=configs/cifar10_methods.py            # one accelerator
    python -m distill_jax.main --config=configs/cifar10_methods.py:small      # one core, hours
    python -m distill_jax.main --config=configs/cifar10_methods.py:smoke      # fake data, CPU
"""

from distill_jax.config import (
    MATCHING,
    check_size,
    cifar10,
    halvings,
    pipeline,
    smoke_images,
    stage,
)

# Channels; batch size; updates: teacher, stage 1, a round, the last two, SiD and DMD2; first N.
SIZES = {
    "full": (128, 256, 100_000, 10_000, 2_000, 5_000, 10_000, 8),
    "small": (32, 64, 5_500, 400, 200, 350, 400, 8),
    "smoke": (32, 4, 8, 8, 8, 8, 8, 2),
}


def get_config(size="full"):
    """Returns the config of one teacher, then the students of four methods, to 1 step."""
    check_size(size, *SIZES)
    channels, batch, teacher, first, rounds, last, matching, start = SIZES[size]
    levels = dict(multipliers=(1, 2, 2), blocks=2 if size == "full" else 1, attention=(8,), heads=1)
    config = cifar10(channels=channels, embedding=4 * channels, **levels, dropout=0.0)
    config.codec.update(name="patch_pca", patch=2, channels=6)
    config.batch_size, config.save_every = batch, min(1000, teacher // 4)
    config.evaluate.update(w=(0.0, 1.0), num_samples=1000 if size == "small" else 10_000)
    config.evaluate.features = "" if size == "smoke" else "efflite0"
    mean = dict(ema_decay=0.999, ema_ramp=0.05)
    own = dict(teacher="teacher", **mean)
    steps = {"default": rounds, 2: last, 1: last}
    halve = dict(start=start, steps=steps, learning_rate=5e-4, ema_decay=0.98, clip_target=False)
    score = dict(steps=matching, learning_rate=1e-4, **{**own, **MATCHING})
    fall = dict(steps=teacher, learning_rate=8e-4, warmup=min(500, teacher // 10), decay_to=0.05)
    guide = dict(steps=first, learning_rate=5e-4, w_range=(0.0, 2.0), new=("w_embed",))
    config.stages = pipeline(
        stage("teacher", "diffusion", num_steps=16, **fall, **mean),
        stage("sid", "sid_lsg", **score, alpha=1.0),
        stage("dmd2", "dmd2", **score, gan_weight=3e-3, fake_updates=2),
        stage("guided", "guided", num_steps=16, **guide, **own),
        *halvings(prefix="guided", **halve, teacher="guided", w_range=(0.0, 2.0)),
        *halvings(prefix="progressive", **halve, teacher="teacher"),
    )
    return config if size != "smoke" else smoke_images(config, 32, "unet", num_classes=10)
