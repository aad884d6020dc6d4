"""LSUN bedroom or church 128x128: progressive distillation of google-research's network to 1 step.

Salimans & Ho (2022, arXiv:2202.00512): their released teachers and the values of their released
configs, as in lsun128_progressive. Published only as plots. Not run. docs/teachers.md says where
the files are:

    python -m distill_jax.teachers google_research bedroom_original --out=teachers/google_lsun128
    python -m distill_jax.main --config=configs/lsun_google_pd.py --workdir=gs://bucket/bedroom
    python -m distill_jax.teachers google_research church_original --out=teachers/google_church128
    python -m distill_jax.main --config=configs/lsun_google_pd.py:church --workdir=gs://bucket/church
    python -m distill_jax.main --config=configs/lsun_google_pd.py:plan --plan_for=64xv4
    python -m distill_jax.main --config=configs/lsun_google_pd.py:smoke    # fake data, CPU
"""

from distill_jax.config import check_size, from_published, paper_halvings, pipeline, sized_import


def get_config(size="full"):
    """Returns the config of the chain imported network -> 512, 256, ..., 1 steps."""
    check_size(size, "full", "church", "plan", "smoke")
    config = from_published("google_lsun128")
    if size == "church":
        config.data.dataset, config.teacher = "lsun/church_outdoor", "teachers/google_church128"
    config.published = "salimans_2022/lsun128"
    start = 1 if size == "smoke" else 512
    config.stages = pipeline(*paper_halvings(start, 1e-4, teacher=config.teacher))
    return sized_import(config, size, num_steps=1024, label_dropout=0.0)
