"""CIFAR-10, class-conditional: EDM's published network guided and distilled to 1 step, w in [0, 4].

The way of Meng et al. (2023, arXiv:2210.03142), after a fine-tuning with label dropout, which EDM's
network lacks. Nothing is published for this teacher, and steps, updates and learning rates are
ours. Not run. docs/teachers.md says where the file is:

    python -m distill_jax.teachers edm edm-cifar10-32x32-cond-vp.pkl --out=teachers/edm_cifar10
    python -m distill_jax.main --config=configs/cifar10_edm_guided.py
    python -m distill_jax.main --config=configs/cifar10_edm_guided.py:plan --plan_for=8xh100
    python -m distill_jax.main --config=configs/cifar10_edm_guided.py:smoke    # fake data, CPU
"""

from distill_jax.config import check_size, from_published, guided_stages, pipeline, sized_import


def get_config(size="full"):
    """Returns the config of the chain finetune -> guided -> 64, 32, ..., 1 steps."""
    check_size(size, "full", "plan", "smoke")
    config = from_published("edm_cifar10")
    config.evaluate.w = (0.0, 0.3, 1.0, 2.0, 4.0)
    start = 1 if size == "smoke" else 64  # EDM's noise levels are spaced for 40 steps or so.
    config.stages = pipeline(*guided_stages("edm_cifar10", start))
    return sized_import(config, size)
