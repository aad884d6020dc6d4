"""ImageNet 64x64, class-conditional: ADM's network, fine-tuned to v, then DMD2 to one call.

ADM predicts eps, whose error one call from noise of level 80 multiplies by 80, so a stage before
fine-tunes it to v. The stages after it are those of Yin et al. (2024, arXiv:2405.14867) for EDM's
network, with noise no lower than ADM's first level. Nothing is published for this teacher, and the
values of `finetune` are ours. Not run. docs/teachers.md says where the file is:

    python -m distill_jax.teachers adm 64x64_diffusion.pt --out=teachers/adm_imagenet64
    python -m distill_jax.main --config=configs/imagenet64_adm_dmd2.py --workdir=gs://bucket/dmd2
    python -m distill_jax.main --config=configs/imagenet64_adm_dmd2.py:plan --plan_for=8xh100
    python -m distill_jax.main --config=configs/imagenet64_adm_dmd2.py:smoke    # fake data, CPU
"""

from distill_jax.config import (
    check_size,
    dmd2_stages,
    finetune_stage,
    from_published,
    pipeline,
    sized_import,
)


def get_config(size="full"):
    """Returns the config of finetune -> one call without GAN -> the same with GAN."""
    check_size(size, "full", "plan", "smoke")
    config = from_published("adm_imagenet64", dtype="bfloat16")
    config.parameterization = "v"
    first = finetune_stage("adm_imagenet64", num_steps=250, label_dropout=0.0)
    config.stages = pipeline(first, *dmd2_stages("finetune", lowest=0.0065))
    return sized_import(config, size)
