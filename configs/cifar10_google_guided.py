"""CIFAR-10: guided distillation of google-research's unconditional network to 1 step, w in [0, 4].

The way of Meng et al. (2023, arXiv:2210.03142) from the teacher that Salimans & Ho (2022,
arXiv:2202.00512) released. It has no labels: a stage before teaches it the ten classes and the null
label. Nothing is published for this teacher; updates and learning rates are ours. Not run.
docs/teachers.md says where the file is:

    python -m distill_jax.teachers google_research cifar_original --out=teachers/google_cifar10
    python -m distill_jax.main --config=configs/cifar10_google_guided.py
    python -m distill_jax.main --config=configs/cifar10_google_guided.py:plan --plan_for=8xh100
    python -m distill_jax.main --config=configs/cifar10_google_guided.py:smoke    # fake data, CPU
"""

from distill_jax.config import check_size, from_published, guided_stages, pipeline, sized_import


def get_config(size="full"):
    """Returns the config of the chain finetune -> guided -> 512, 256, ..., 1 steps."""
    check_size(size, "full", "plan", "smoke")
    config = from_published("google_cifar10")
    config.data.labelled = True
    config.evaluate.w = (0.0, 0.3, 1.0, 2.0, 4.0)
    start = 1 if size == "smoke" else 512
    config.stages = pipeline(*guided_stages("google_cifar10", start, new=("class_emb",)))
    return sized_import(config, size)
