"""ImageNet 64x64, class-conditional, without guidance: progressive distillation, 1024 steps to 1.

Salimans & Ho (2022, arXiv:2202.00512): the values of their released configs. Published: FID 2.95,
3.89, 7.36, 16.06 in 8, 4, 2, 1 steps (read off a figure). The number of teacher updates is from
memory.

    python -m distill_jax.main --config=configs/imagenet64_progressive.py --workdir=gs://bucket/pd
    python -m distill_jax.main --config=configs/imagenet64_progressive.py:smoke    # fake data, CPU
"""

from distill_jax.config import base, check_size, halvings, paper_unet, pipeline, smoke_images, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> 512, 256, ..., 1 steps."""
    check_size(size, "full", "smoke")
    config = base()
    config.data = dict(name="tfds", dataset="imagenet2012", data_dir="", size=64, num_labels=1000)
    config.data.splits = ("train", "validation")
    config.model = paper_unet("imagenet64")
    config.parameterization = "both"
    config.batch_size = 2048
    config.save_every = 5000
    config.evaluate.w = (0.0,)
    teacher = stage(
        "teacher",
        "diffusion",
        steps=550_000,
        learning_rate=3e-4,
        warmup=1000,
        decay_to=1.0,
        ema_decay=0.9999,
        num_steps=1024,
        label_dropout=0.0,
    )
    rounds = halvings(
        start=512 if size == "full" else 1,
        steps={"default": 50_000, 2: 100_000, 1: 100_000},
        learning_rate=1e-4,
        clip_target=False,
    )
    config.stages = pipeline(teacher, *rounds)
    if size == "full":
        return config
    return smoke_images(config, 64, num_classes=1000)
