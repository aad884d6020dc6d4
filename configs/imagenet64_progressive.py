"""ImageNet 64x64, class-conditional, without guidance: progressive distillation, 1024 steps to 1.

Salimans & Ho (2022, arXiv:2202.00512): the values of their released configs. Published: FID 2.95,
3.89, 7.36, 16.06 in 8, 4, 2, 1 steps (read off a figure). The number of teacher updates is from
memory.

    python -m distill_jax.main --config=configs/imagenet64_progressive.py --workdir=gs://bucket/pd
    python -m distill_jax.main --config=configs/imagenet64_progressive.py:smoke    # fake data, CPU
"""

from distill_jax.config import (
    check_size,
    imagenet64,
    paper_halvings,
    paper_teacher,
    pipeline,
    smoke_images,
)


def get_config(size="full"):
    """Returns the config of the chain teacher -> 512, 256, ..., 1 steps."""
    check_size(size, "full", "smoke")
    config = imagenet64()
    config.published = "salimans_2022/imagenet64"
    config.parameterization = "both"
    config.evaluate.w = (0.0,)
    teacher = paper_teacher(steps=550_000, learning_rate=3e-4, label_dropout=0.0)
    rounds = paper_halvings(512 if size == "full" else 1, learning_rate=1e-4)
    config.stages = pipeline(teacher, *rounds)
    if size == "full":
        return config
    return smoke_images(config, 64, num_classes=1000)
