"""ImageNet 64x64, class-conditional: SiD from EDM's published network, one call, without data.

Zhou et al. (2024, arXiv:2404.04057): the values of their released run. They compute in float16, we
in bfloat16. Published: FID 1.52. Not run. docs/teachers.md says where the file is:

    python -m distill_jax.teachers edm edm-imagenet-64x64-cond-adm.pkl --out=teachers/edm_imagenet64
    python -m distill_jax.main --config=configs/imagenet64_edm_sid.py --workdir=gs://bucket/sid
    python -m distill_jax.main --config=configs/imagenet64_edm_sid.py:plan --plan_for=64xh100
    python -m distill_jax.main --config=configs/imagenet64_edm_sid.py:smoke    # fake data, CPU
"""

from distill_jax.config import (
    MATCHING,
    check_size,
    from_published,
    pipeline,
    sid_stage,
    sized_import,
)


def get_config(size="full"):
    """Returns the config of the imported network's student of one call."""
    check_size(size, "full", "plan", "smoke")
    config = from_published("edm_imagenet64", dtype="bfloat16")
    config.batch_size = 8192
    config.published = "zhou_2024/imagenet64"
    optimizer = {**MATCHING["optimizer"], "eps": 1e-6}
    rates = dict(learning_rate=4e-6, ema_decay=0.997165, optimizer=optimizer)
    stages = [sid_stage(1_000_000_000 // 8192, teacher=config.teacher, **rates)]
    config.stages = pipeline(*stages)
    return sized_import(config, size, num_steps=80, label_dropout=0.0)
