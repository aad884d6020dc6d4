"""SDXL, 1024x1024: DMD2 to four calls, first without its GAN and then with it.

Yin et al. (2024, arXiv:2405.14867). From their released code: times 999, 749, 499, 249 of 1000,
guidance 8 (w = 7), learning rate, AdamW, warm-up, clipping, levels, weights of the GAN, 19,000
iterations. From memory: 5 updates of the fake for one of the student, so five iterations are one
here; batch 128. Ours: two stages as for ImageNet and where the GAN starts (`:one_stage` has it from
the start), no EMA, the discriminator of ImageNet 64, and any captioned pictures instead of LAION's.
Not run. docs/teachers.md says where pipeline, pictures and teacher come from:

    python -m distill_jax.main --config=configs/sdxl_dmd2.py:plan --plan_for=64xh100 \
        --config.mesh.fsdp=64    # sizes and memory, without directories
    python -m distill_jax.main --config=configs/sdxl_dmd2.py --config.mesh.fsdp=64
    python -m distill_jax.main --config=configs/sdxl_dmd2.py:smoke    # a small network, on shapes
"""

from distill_jax.config import (
    SDXL_TEXT,
    check_size,
    pipeline,
    plan_latents,
    smoke_latents,
    stable_diffusion,
    stage,
)


def get_config(size="full"):
    """Returns the config of the imported teacher -> four calls without GAN -> the same with GAN."""
    check_size(size, "full", "one_stage", "plan", "smoke")
    levels = dict(widths=(320, 640, 1280), transformers=(1, 2), heads=(5, 10, 20))
    blocks = dict(depths=(1, 2, 10), size_channels=256, linear=True)
    config = stable_diffusion("stable-diffusion-xl-base-1.0", size=1024, **levels, **blocks)
    config.schedule.zero_snr, config.parameterization = False, "eps"  # Those of the teacher.
    config.batch_size, config.evaluate.w = 128, (7.0,)
    student = dict(
        teacher="teachers/sdxl",
        learning_rate=5e-7,
        warmup=500 // 5,
        decay_to=1.0,
        weight_decay=0.01,
        optimizer={"b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": 10.0},
        times=(1.0, 0.75, 0.5, 0.25),
        w=7.0,
        levels=("scaled_linear", 0.138, 13.04),  # Indices 20 to 980 of 0 to 999.
        fake_levels=("scaled_linear", 0.0292, 14.61),
        weighting="snr",  # The error of eps.
        fake_updates=5,
    )
    gan = dict(gan_weight=5e-3, discriminator_weight=1e-2, discriminator="spatial")
    last = dict(init="dmd2", init_fake="dmd2", **student, **gan)
    stages = [stage("dmd2", "dmd2", steps=10_000 // 5, keep_fake=True, **student)]
    stages += [stage("gan", "dmd2", steps=9_000 // 5, **last)]
    if size == "one_stage":
        stages = [stage("gan", "dmd2", steps=19_000 // 5, **student, **gan)]
    config.stages = pipeline(*stages)
    if size == "plan":
        return plan_latents(config, SDXL_TEXT)
    return smoke_latents(config) if size == "smoke" else config
