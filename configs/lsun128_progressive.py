"""LSUN bedroom or church 128x128, unconditional: progressive distillation from 1024 steps to 1.

Salimans & Ho (2022, arXiv:2202.00512): the values of their released configs; the number of teacher
updates is from memory. Published only as plots: near the teacher's quality down to 4 or 8 steps.

    python -m distill_jax.main --config=configs/lsun128_progressive.py --workdir=gs://bucket/bedroom
    python -m distill_jax.main --config=configs/lsun128_progressive.py:church
    python -m distill_jax.main --config=configs/lsun128_progressive.py:smoke    # fake data, CPU
"""

from distill_jax.config import (
    base,
    check_size,
    halvings,
    paper_teacher,
    paper_unet,
    pipeline,
    smoke_images,
)

DATASETS = {"full": "lsun/bedroom", "church": "lsun/church_outdoor", "smoke": ""}


def get_config(size="full"):
    """Returns the config of the chain teacher -> 512, 256, ..., 1 steps."""
    check_size(size, *DATASETS)
    config = base()
    config.published = "salimans_2022/lsun128"
    config.data = dict(name="tfds", dataset=DATASETS[size], data_dir="", size=128, num_labels=1)
    config.data.update(splits=("train", "validation"), resize="triangle")
    config.model = paper_unet("lsun128")
    config.parameterization = "both"
    config.batch_size = 2048
    config.save_every = 5000
    teacher = paper_teacher(steps=400_000, learning_rate=3e-4, label_dropout=0.0)
    rounds = halvings(
        start=1 if size == "smoke" else 512,
        steps={"default": 50_000, 2: 100_000, 1: 100_000},
        learning_rate=1e-4,
        clip_target=False,
    )
    config.stages = pipeline(teacher, *rounds)
    if size != "smoke":
        return config
    return smoke_images(config, 128, num_classes=0)
