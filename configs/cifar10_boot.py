"""CIFAR-10, class-conditional: BOOT, a one-call student that trains without data.

Gu et al. (2023, arXiv:2306.05544). Neither the paper's text nor its code was at hand: delta, times,
learning rate and updates are ours. Published for ImageNet 64 (read second-hand): FID 16.3.

    python -m distill_jax.main --config=configs/cifar10_boot.py --workdir=runs/cifar10_boot
    python -m distill_jax.main --config=configs/cifar10_boot.py:smoke    # fake data, CPU
"""

from distill_jax.config import check_size, cifar10, paper_teacher, pipeline, smoke_images, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "smoke")
    config = cifar10()
    config.batch_size = 256
    config.stages = pipeline(
        paper_teacher(steps=800_000, learning_rate=2e-4, weight_decay=1e-3),
        stage(
            "boot",
            "boot",
            steps=500_000,
            learning_rate=1e-4,
            warmup=1000,
            ema_decay=0.9999,
            new=("target_embed",),
            delta=0.04,
            solver="heun",
        ),
    )
    return config if size == "full" else smoke_images(config, 32, num_classes=10)
