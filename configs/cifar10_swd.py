"""CIFAR-10, class-conditional: SwD, a student of three calls at 8, 16 and 32 pixels.

Starodubcev et al. (2025, arXiv:2503.16397) train only latent text-to-image models. Losses, weights,
noise levels, AdamW, clipping and updates of the fake are from the released scripts. Times,
resolutions (from `python -m distill_jax.spectrum`), learning rate, batch and updates are ours. w is
0, not 6, and there is an EMA: docs/reference_differences.md. Nothing is published for CIFAR-10.

    python -m distill_jax.main --config=configs/cifar10_swd.py --workdir=runs/cifar10_swd
    python -m distill_jax.main --config=configs/cifar10_swd.py:smoke    # fake data, CPU
"""

from distill_jax.config import check_size, cifar10, paper_teacher, pipeline, smoke_images, stage


def get_config(size="full"):
    """Returns the config of the chain teacher at three sizes -> three calls, small to large."""
    check_size(size, "full", "smoke")
    config = cifar10()
    config.schedule = {"name": "rectified_flow"}
    config.parameterization = "flow"
    config.batch_size = 256
    config.stages = pipeline(
        paper_teacher(
            steps=800_000,
            learning_rate=2e-4,
            weight_decay=1e-3,
            num_steps=256,
            resolutions=(8, 16, 32),
        ),
        stage(
            "swd",
            "swd",
            steps=30_000,
            learning_rate=1e-5,
            decay_to=1.0,
            weight_decay=0.01,
            ema_decay=0.999,
            optimizer={"clip_norm": 10.0},
            times=(1.0, 0.85, 0.6),
            resolutions=(8, 16, 32),
        ),
    )
    return config if size == "full" else smoke_images(config, 32, "dit", num_classes=10)
