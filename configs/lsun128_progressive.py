"""LSUN bedroom or church 128x128, unconditional: progressive distillation from 1024 steps to 1.

Salimans & Ho (2022, arXiv:2202.00512): the values of their released configs; the number of teacher
updates is from memory. Published only as plots: near the teacher's quality down to 4 or 8 steps.

    python -m distill_jax.main --config=configs/lsun128_progressive.py --workdir=gs://bucket/bedroom
    python -m distill_jax.main --config=configs/lsun128_progressive.py:church
    python -m distill_jax.main --config=configs/lsun128_progressive.py:smoke    # fake data, CPU
"""

from distill_jax.config import (
    check_size,
    lsun128,
    paper_halvings,
    paper_teacher,
    pipeline,
    smoke_images,
)


def get_config(size="full"):
    """Returns the config of the chain teacher -> 512, 256, ..., 1 steps."""
    check_size(size, "full", "church", "smoke")
    config = lsun128()
    config.published = "salimans_2022/lsun128"
    if size == "church":
        config.data.dataset = "lsun/church_outdoor"
    teacher = paper_teacher(steps=400_000, learning_rate=3e-4, label_dropout=0.0)
    rounds = paper_halvings(1 if size == "smoke" else 512, learning_rate=1e-4)
    config.stages = pipeline(teacher, *rounds)
    if size != "smoke":
        return config
    return smoke_images(config, 128, num_classes=0)
