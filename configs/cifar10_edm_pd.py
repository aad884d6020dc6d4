"""CIFAR-10, class-conditional: progressive distillation of EDM's published network, 64 steps to 1.

The method and rates of Salimans & Ho (2022, arXiv:2202.00512). The first number of steps is ours:
EDM's noise levels are spaced for some 40 steps. We know no number of this teacher with this method.
Not run. docs/teachers.md says where the file is:

    python -m distill_jax.teachers edm edm-cifar10-32x32-cond-vp.pkl --out=teachers/edm_cifar10
    python -m distill_jax.main --config=configs/cifar10_edm_pd.py
    python -m distill_jax.main --config=configs/cifar10_edm_pd.py:plan --plan_for=8xh100
    python -m distill_jax.main --config=configs/cifar10_edm_pd.py:smoke    # fake data, CPU
"""

from distill_jax.config import check_size, from_published, paper_halvings, pipeline, sized_import


def get_config(size="full"):
    """Returns the config of the chain imported network -> 64, 32, ..., 1 steps."""
    check_size(size, "full", "plan", "smoke")
    config = from_published("edm_cifar10")
    start = 2 if size == "smoke" else 64
    config.stages = pipeline(*paper_halvings(start, 5e-5, teacher=config.teacher))
    return sized_import(config, size, num_steps=128, label_dropout=0.0)
