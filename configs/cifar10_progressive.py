"""CIFAR-10, unconditional: progressive distillation from 8192 steps to 1.

Salimans & Ho (2022, arXiv:2202.00512): the networks and values of their released configs, except
where a comment says otherwise. Published: FID 2.57, 3.00, 4.51, 9.12 in 8, 4, 2, 1 steps.

    python -m distill_jax.main --config=configs/cifar10_progressive.py --workdir=runs/cifar10
    python -m distill_jax.main --config=configs/cifar10_progressive.py:smoke    # fake data, CPU
"""

from distill_jax.config import (
    check_size,
    cifar10,
    paper_halvings,
    paper_teacher,
    pipeline,
    smoke_images,
)


def get_config(size="full"):
    """Returns the config of the chain teacher -> 4096, 2048, ..., 1 steps."""
    check_size(size, "full", "smoke")
    config = cifar10()
    config.published = "salimans_2022/cifar10"
    config.data.labelled = False
    config.parameterization = "x"
    # The teacher's 800,000 updates are from memory of the paper; its appendix may say 3e-4.
    teacher = paper_teacher(steps=800_000, learning_rate=2e-4, weight_decay=1e-3, label_dropout=0.0)
    # The paper's learning rate may be 1e-4 (from memory); the released config has 5e-5.
    rounds = paper_halvings(4096 if size == "full" else 2, learning_rate=5e-5)
    config.stages = pipeline(teacher, *rounds)
    if size == "full":
        return config
    return smoke_images(config, 32, num_classes=0, num_labels=10)
