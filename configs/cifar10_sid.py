"""CIFAR-10, class-conditional: SiD, a one-call student by score identity, without data.

Zhou et al. (2024, arXiv:2404.04057): the values of their released run, except for four. The teacher
is that of cifar10_guided, not EDM's (docs/teachers.md imports it). There is no augmentation,
dropout is 0.2 and not 0.13, and there are 100 million images, not 800 million. Published: FID 1.71.

    python -m distill_jax.main --config=configs/cifar10_sid.py --workdir=runs/cifar10_sid
    python -m distill_jax.main --config=configs/cifar10_sid.py:smoke    # fake data, CPU
"""

from distill_jax.config import check_size, cifar10, paper_teacher, pipeline, sid_stage, smoke_images


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "smoke")
    config = cifar10()
    config.published = "zhou_2024/cifar10"
    config.batch_size = 256
    config.matmul_precision = "highest"  # Their training loop forbids TF32.
    config.stages = pipeline(
        paper_teacher(steps=800_000, learning_rate=2e-4, weight_decay=1e-3),
        sid_stage(390_625),
    )
    return config if size == "full" else smoke_images(config, 32, num_classes=10)
