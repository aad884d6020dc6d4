"""ImageNet 64x64, class-conditional: DMD2 from EDM's published network, to one call.

Yin et al. (2024, arXiv:2405.14867): the values of their released scripts, and their teacher.
Published: FID 2.61 after stage `dmd2`, 1.28 after `gan`; 1.51 with `:one_stage`, which has the GAN
from the start. Not run. docs/teachers.md says where the file is:

    python -m distill_jax.teachers edm edm-imagenet-64x64-cond-adm.pkl --out=teachers/edm_imagenet64
    python -m distill_jax.main --config=configs/imagenet64_edm_dmd2.py --workdir=gs://bucket/dmd2
    python -m distill_jax.main --config=configs/imagenet64_edm_dmd2.py:one_stage --workdir=runs/gan
    python -m distill_jax.main --config=configs/imagenet64_edm_dmd2.py:plan --plan_for=8xh100
    python -m distill_jax.main --config=configs/imagenet64_edm_dmd2.py:smoke    # fake data, CPU
"""

from distill_jax.config import check_size, dmd2_stages, from_published, pipeline, sized_import


def get_config(size="full"):
    """Returns the config of imported network -> one call without GAN -> the same with GAN."""
    check_size(size, "full", "one_stage", "plan", "smoke")
    config, one_stage = from_published("edm_imagenet64", dtype="bfloat16"), size == "one_stage"
    config.published = "yin_2024/imagenet64" + ("_one_stage" if one_stage else "")
    config.stages = pipeline(*dmd2_stages(config.teacher, one_stage))
    return sized_import(config, size, num_steps=80, label_dropout=0.0)
