"""Digits: ablations of the rounds of a chain, all from one guided network.

Updates per round, and factor 4: Salimans & Ho (2022, arXiv:2202.00512), appendix. One w against an
interval, and a conditional and an unconditional student guided after distillation: Meng et al.
(2023, arXiv:2210.03142). Targets without clipping: the released code of Salimans & Ho.

    python -m distill_jax.sweep configs/sweeps/digits_rounds.py
"""

from distill_jax.config import check_size, digits, digits_teacher, halvings, pipeline, smoke, stage

CHAIN = {"learning_rate": 5e-4, "ema_decay": 0.98, "w_range": (0.0, 4.0)}
GUIDED = "{sweep}/guided/s01_guided"
TEACHER = "{sweep}/guided/s00_teacher"


def runs():
    """Returns stages by run; the first run is the teacher of the others."""
    options = {"w_range": (0.0, 4.0), "new": ("w_embed",), "ema_decay": 0.995, "num_steps": 64}
    guided = stage("guided", "guided", steps=3000, learning_rate=5e-4, **options)
    yield "guided", [digits_teacher(), guided]
    for steps in (50, 100, 200, 400, 800):
        yield f"{steps} updates a round", halvings(32, steps=steps, teacher=GUIDED, **CHAIN)
    quarters = halvings(16, steps=400, factor=4, teacher=GUIDED, **CHAIN)
    yield "factor 4, 400 updates", quarters
    single = {**CHAIN, "w_range": (1.0, 1.0)}
    yield "w = 1 alone, 200 updates", halvings(32, steps=200, teacher=GUIDED, **single)
    unclipped = halvings(32, steps=200, teacher=GUIDED, clip_target=False, **CHAIN)
    yield "targets not clipped, 200 updates", unclipped
    pair = {"learning_rate": 5e-4, "ema_decay": 0.98, "label_dropout": 0.5}
    yield "guided after distillation, 400 updates", halvings(32, steps=400, teacher=TEACHER, **pair)


def get_sweep(size="full"):
    """Returns a config for each run."""
    check_size(size, "full", "smoke")
    configs = {}
    for name, stages in runs():
        config = digits()
        config.evaluate.w = (1.0,)
        config.stages = pipeline(*stages)
        configs[name] = config if size == "full" else smoke(config, width=32, blocks=1)
    return configs
