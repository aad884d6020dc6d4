"""ImageNet 64x64, class-conditional with label dropout: a teacher that can be guided.

The network and learning rates are those of Salimans & Ho (2022, arXiv:2202.00512). Label dropout
and v-prediction are what Meng et al. (2023, arXiv:2210.03142) need. The number of updates is from
memory.

    python -m distill_jax.main --config=configs/imagenet64_teacher.py --workdir=gs://bucket/teacher
    python -m distill_jax.main --config=configs/imagenet64_teacher.py:smoke    # fake data, CPU
"""

from distill_jax.config import base, check_size, paper_unet, pipeline, smoke_images, stage


def get_config(size="full"):
    """Returns the config of one stage, the teacher."""
    check_size(size, "full", "smoke")
    config = base()
    config.data = dict(name="tfds", dataset="imagenet2012", data_dir="", size=64, num_labels=1000)
    config.data.splits = ("train", "validation")
    config.model = paper_unet("imagenet64", dtype="bfloat16")
    config.batch_size = 2048
    config.save_every = 5000
    config.stages = pipeline(
        stage(
            "teacher",
            "diffusion",
            steps=550_000,
            learning_rate=3e-4,
            warmup=1000,
            decay_to=1.0,
            ema_decay=0.9999,
            num_steps=1024,
            label_dropout=0.1,
        )
    )
    if size == "full":
        return config
    return smoke_images(config, 64, num_classes=1000)
