"""ImageNet 64x64, class-conditional with label dropout: a teacher that can be guided.

The network and learning rates are those of Salimans & Ho (2022, arXiv:2202.00512). Label dropout
and v-prediction are what Meng et al. (2023, arXiv:2210.03142) need. The number of updates is from
memory.

    python -m distill_jax.main --config=configs/imagenet64_teacher.py --workdir=gs://bucket/teacher
    python -m distill_jax.main --config=configs/imagenet64_teacher.py:smoke    # fake data, CPU
"""

from distill_jax.config import check_size, imagenet64, paper_teacher, pipeline, smoke_images


def get_config(size="full"):
    """Returns the config of one stage, the teacher."""
    check_size(size, "full", "smoke")
    config = imagenet64(dtype="bfloat16")
    teacher = paper_teacher(steps=550_000, learning_rate=3e-4, label_dropout=0.1)
    config.stages = pipeline(teacher)
    if size == "full":
        return config
    return smoke_images(config, 64, num_classes=1000)
