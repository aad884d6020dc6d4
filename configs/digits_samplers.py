"""Handwritten digits, 8x8: deterministic and stochastic students, compared with their teacher.

Meng et al. (2023, arXiv:2210.03142), section 3.4, at every number of steps from 32 to 1. At one
step the two samplers are the same, so the stochastic students end at 2. The report tunes the
variance of the teacher's ancestral sampler for every number of steps.

    python -m distill_jax.main --config=configs/digits_samplers.py
    python -m distill_jax.main --config=configs/digits_samplers.py:smoke
"""

from distill_jax.config import check_size, digits, digits_teacher, halvings, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of teacher -> guided -> 32, ..., 1 steps, and 32, ..., 2 stochastic."""
    check_size(size, "full", "smoke")
    config = digits()
    config.evaluate.update(w=(0.0, 1.0, 4.0), ancestral=(0.0, 0.25, 0.5, 0.75, 1.0))
    w_range = (0.0, 4.0)
    updates = {"default": 200, 4: 400}
    rounds = dict(
        start=32,
        learning_rate=5e-4,
        ema_decay=0.98,
        w_range=w_range,
        teacher="guided",
    )
    options = dict(w_range=w_range, new=("w_embed",), ema_decay=0.995, num_steps=64)
    config.stages = pipeline(
        digits_teacher(),
        stage("guided", "guided", steps=3000, learning_rate=5e-4, **options),
        *halvings(steps={**updates, 2: 500, 1: 800}, **rounds),
        # The last round has the updates of two rounds: half of each batch is at t = 1.
        *halvings(end=2, steps={**updates, 2: 1300}, method="stochastic", prefix="s", **rounds),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
