"""Handwritten digits, 8x8: consistency models of one call, in discrete and in continuous time.

Song et al. (2023, arXiv:2303.01469), Geng et al. (2024, arXiv:2406.14548), Lu & Song (2024,
arXiv:2410.11081). The papers have no digits; rates and iterations are ours.

    launch/local.sh --config=configs/digits_consistency.py            # minutes on two CPU cores
    launch/local.sh --config=configs/digits_consistency.py:smoke      # seconds; draws noise
"""

from distill_jax.config import check_size, digits, digits_teacher, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of a teacher, and of students that learn from it or from the data."""
    check_size(size, "full", "smoke")
    config = digits()
    config.model.time_scale = 10.0  # Smooth in the time, of which sCM takes the derivative.
    config.evaluate.w = (0.0,)
    own = dict(teacher="teacher", ema_decay=0.995)
    rates = dict(steps=2500, learning_rate=1e-3, **own)
    config.stages = pipeline(
        digits_teacher(),
        stage("distilled", "consistency", **rates),
        stage("trained", "consistency", source="data", **rates),
        stage("scm", "scm", steps=5000, learning_rate=2e-3, **own),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
