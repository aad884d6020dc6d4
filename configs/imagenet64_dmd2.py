"""ImageNet 64x64, class-conditional: DMD2 to one call, first without its GAN and then with it.

Yin et al. (2024, arXiv:2405.14867): the values of their released scripts. Those update the student
in every fifth iteration, so five of their iterations are one here. Published: FID 2.61 after stage
`dmd2`, 1.28 after `gan`; 1.51 with `:one_stage`, which has the GAN from the start. The teacher is
that of imagenet64_teacher.py, not EDM's; see docs/reference_differences.md.

    python -m distill_jax.main --config=configs/imagenet64_dmd2.py --workdir=gs://bucket/dmd2
    python -m distill_jax.main --config=configs/imagenet64_dmd2.py:one_stage --workdir=runs/dmd2_gan
    python -m distill_jax.main --config=configs/imagenet64_dmd2.py:smoke    # fake data, CPU
"""

from distill_jax.config import (
    check_size,
    dmd2_stages,
    imagenet64,
    paper_teacher,
    pipeline,
    smoke_images,
)


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call without GAN -> the same with GAN."""
    check_size(size, "full", "one_stage", "smoke")
    config, one_stage = imagenet64(dtype="bfloat16"), size == "one_stage"
    config.evaluate.w = (0.0,)
    config.published = "yin_2024/imagenet64" + ("_one_stage" if one_stage else "")
    teacher = paper_teacher(steps=550_000, learning_rate=3e-4, label_dropout=0.1)
    config.stages = pipeline(teacher, *dmd2_stages("teacher", one_stage))
    if size != "smoke":
        return config
    return smoke_images(config, 64, num_classes=1000)
