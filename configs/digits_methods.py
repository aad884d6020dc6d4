"""Handwritten digits, 8x8: students of every method from one teacher, a small transformer.

Salimans & Ho (2022, arXiv:2202.00512), Meng et al. (2023, arXiv:2210.03142), BOOT (2306.05544),
SiD (2404.04057), SiD-LSG (2406.01561), DMD2 (2405.14867), Decoupled DMD (2511.22677),
consistency models (2303.01469, 2410.11081), MeanFlow (2505.13447), SwD (2503.16397).

    python benchmarks/methods.py                                     # makes docs/methods.md's table
    python -m distill_jax.main --config=configs/digits_methods.py:smoke
"""

from distill_jax.config import MATCHING, check_size, digits, halvings, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of one teacher at two resolutions, then a student of every method."""
    check_size(size, "full", "smoke")
    config = digits(name="dit", patch=2, width=64, blocks=3, heads=2, expand=4, remat="none")
    config.model.time_scale = 10.0  # Smooth in the time, for sCM and MeanFlow.
    config.batch_size = 64
    config.evaluate.w = (0.0, 0.5)
    mean = dict(ema_decay=0.995, ema_ramp=0.05)
    own = dict(teacher="teacher", **mean)
    simple = dict(steps=2000, learning_rate=5e-4, **own)
    quick = {**simple, "learning_rate": 1e-3}
    flow = dict(levels=("uniform", 1e-3, 1e3), pairs=0.75, power=0.5)
    few = dict(times=(1.0, 0.5), w=0.5, focused=False)
    score = dict(steps=1000, learning_rate=2e-4, fake_updates=2, **{**own, **MATCHING})
    lsg = dict(kappas=1.5, weighting="snr", loss_scale=1.0)
    lsg.update({name: ("uniform", 0.138, 12.97) for name in ("levels", "fake_levels")})
    swd = {**score, "steps": 600, "learning_rate": 3e-4, "times": (1.0, 0.5)}
    swd.update(dmd_levels=("uniform", 0.014, 2.93), fake_levels=("uniform", 0.014, 1e4))
    rates = dict(learning_rate=5e-4, ema_decay=0.98)
    rounds = dict(start=16, end=1, steps={"default": 150, 2: 250, 1: 400}, **rates)
    equal = {"default": 500, 2: 850, 1: 1400}  # Compute of a one-call method.
    config.stages = pipeline(
        stage("teacher", "diffusion", steps=4000, learning_rate=1e-3, resolutions=(4, 8), **mean),
        *halvings(prefix="progressive", **{**rounds, "steps": equal}, teacher="teacher"),
        stage("guided", "guided", w_range=(0.0, 1.0), new=("w_embed",), **simple),
        *halvings(prefix="guided", **rounds, teacher="guided", w_range=(0.0, 1.0)),
        stage("consistency", "consistency", **quick),
        stage("scm", "scm", **quick),
        stage("meanflow", "meanflow", new=("target_embed",), **flow, **quick),
        stage("boot", "boot", new=("target_embed",), **simple),
        stage("sid", "sid_lsg", **score),
        stage("sid_lsg", "sid_lsg", **score, **lsg),
        stage("dmd2", "dmd2", gan_weight=3e-3, **score),
        stage("decoupled_dmd", "decoupled_dmd", **few, **score),
        stage("swd", "swd", resolutions=(4, 8), **swd),
        stage("swd_full", "swd", resolutions=(8, 8), **swd),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
