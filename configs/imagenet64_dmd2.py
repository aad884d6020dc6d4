"""ImageNet 64x64, class-conditional: DMD2 to one call, first without its GAN and then with it.

Yin et al. (2024, arXiv:2405.14867): the values of their released scripts. Those update the student
in every fifth iteration, so five of their iterations are one here. Published: FID 2.61 after stage
`dmd2`, 1.28 after `gan`; 1.51 with `:one_stage`, which has the GAN from the start. The teacher is
that of imagenet64_teacher.py, not EDM's; see docs/reference_differences.md.

    python -m distill_jax.main --config=configs/imagenet64_dmd2.py --workdir=gs://bucket/dmd2
    python -m distill_jax.main --config=configs/imagenet64_dmd2.py:one_stage --workdir=runs/dmd2_gan
    python -m distill_jax.main --config=configs/imagenet64_dmd2.py:smoke    # fake data, CPU
"""

from distill_jax.config import check_size, imagenet64, paper_teacher, pipeline, smoke_images, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call without GAN -> the same with GAN."""
    check_size(size, "full", "one_stage", "smoke")
    config = imagenet64(dtype="bfloat16")
    config.evaluate.w = (0.0,)
    config.published = "yin_2024/imagenet64"
    student = dict(
        teacher="teacher",
        batch_size=280,  # 7 GPUs with 40 images each.
        warmup=500 // 5,
        decay_to=1.0,
        weight_decay=0.01,
        optimizer={"b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": 10.0},
        sigma_init=80.0,
        levels=("karras", 0.00323, 72.05),  # Indices 20 to 980 of EDM's grid 0 to 999.
        fake_levels=("karras", 0.002, 80.0),
        fake_updates=5,
    )
    gan = dict(gan_weight=3e-3, discriminator_weight=1e-2, discriminator="spatial")
    last = dict(init="dmd2", init_fake="dmd2", steps=(548_000 - 405_500) // 5, learning_rate=5e-7)
    stages = [
        stage("dmd2", "dmd2", steps=405_500 // 5, learning_rate=2e-6, keep_fake=True, **student),
        stage("gan", "dmd2", **last, **student, **gan),
    ]
    if size == "one_stage":
        config.published += "_one_stage"
        stages = [stage("gan", "dmd2", steps=193_500 // 5, learning_rate=2e-6, **student, **gan)]
    teacher = paper_teacher(steps=550_000, learning_rate=3e-4, label_dropout=0.1)
    config.stages = pipeline(teacher, *stages)
    if size != "smoke":
        return config
    return smoke_images(config, 64, num_classes=1000)
