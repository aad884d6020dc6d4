"""CIFAR-10, class-conditional: DMD2 with its GAN from EDM's published network, to one call.

Yin et al. (2024, arXiv:2405.14867) publish nothing for CIFAR-10: these are the values of their
script for ImageNet 64x64 with the GAN from the start. Not run. docs/teachers.md says where the file
is:

    python -m distill_jax.teachers edm edm-cifar10-32x32-cond-vp.pkl --out=teachers/edm_cifar10
    python -m distill_jax.main --config=configs/cifar10_edm_dmd2.py
    python -m distill_jax.main --config=configs/cifar10_edm_dmd2.py:plan --plan_for=8xh100
    python -m distill_jax.main --config=configs/cifar10_edm_dmd2.py:smoke    # fake data, CPU
"""

from distill_jax.config import check_size, dmd2_stages, from_published, pipeline, sized_import


def get_config(size="full"):
    """Returns the config of the imported network's student of one call."""
    check_size(size, "full", "plan", "smoke")
    config = from_published("edm_cifar10")
    config.stages = pipeline(*dmd2_stages(config.teacher, one_stage=True))
    return sized_import(config, size, num_steps=80, label_dropout=0.0)
