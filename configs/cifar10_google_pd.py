"""CIFAR-10, unconditional: progressive distillation of google-research's network, 4096 steps to 1.

Salimans & Ho (2022, arXiv:2202.00512): their released teacher and the values of their released
configs, as in cifar10_progressive. Published: FID 2.57, 3.00, 4.51, 9.12 in 8, 4, 2, 1 steps.
`:from_8` goes on from their released student of 8 steps. Not run. docs/teachers.md says where the
files are:

    python -m distill_jax.teachers google_research cifar_original --out=teachers/google_cifar10
    python -m distill_jax.main --config=configs/cifar10_google_pd.py
    python -m distill_jax.teachers google_research cifar_8 --out=teachers/google_cifar10_8
    python -m distill_jax.main --config=configs/cifar10_google_pd.py:from_8
    python -m distill_jax.main --config=configs/cifar10_google_pd.py:plan --plan_for=8xh100
    python -m distill_jax.main --config=configs/cifar10_google_pd.py:smoke    # fake data, CPU
"""

from distill_jax.config import check_size, from_published, paper_halvings, pipeline, sized_import

STARTS = {"full": 4096, "from_8": 4, "plan": 4096, "smoke": 2}


def get_config(size="full"):
    """Returns the config of the chain imported network -> 4096, 2048, ..., 1 steps."""
    check_size(size, *STARTS)
    config = from_published("google_cifar10")
    config.published = "salimans_2022/cifar10"
    config.teacher += "_8" if size == "from_8" else ""
    config.stages = pipeline(*paper_halvings(STARTS[size], 5e-5, teacher=config.teacher))
    return sized_import(config, size, num_steps=8192, label_dropout=0.0)
