"""CIFAR-10, class-conditional: SiD from EDM's published network, a one-call student without data.

Zhou et al. (2024, arXiv:2404.04057): the values of their released run, with its 800 million images,
except for augmentation, which is not built. Published: FID 1.71. Not run. docs/teachers.md says
where the file is:

    python -m distill_jax.teachers edm edm-cifar10-32x32-cond-vp.pkl --out=teachers/edm_cifar10
    python -m distill_jax.main --config=configs/cifar10_edm_sid.py
    python -m distill_jax.main --config=configs/cifar10_edm_sid.py:plan --plan_for=8xh100
    python -m distill_jax.main --config=configs/cifar10_edm_sid.py:smoke    # fake data, CPU
"""

from distill_jax.config import check_size, from_published, pipeline, sid_stage, sized_import


def get_config(size="full"):
    """Returns the config of the imported network's student of one call."""
    check_size(size, "full", "plan", "smoke")
    config = from_published("edm_cifar10")
    config.batch_size = 256
    config.published = "zhou_2024/cifar10"
    config.matmul_precision = "highest"  # Their training loop forbids TF32.
    config.stages = pipeline(sid_stage(800_000_000 // 256, teacher=config.teacher))
    return sized_import(config, size, num_steps=80, label_dropout=0.0)
