"""Digits: EDM's recipe for teachers beside uniform times, sampled by DDIM and by Heun's method.

Karras et al. (2022, arXiv:2206.00364), Table 1: noise levels, preconditioning and weighting in
training, and the deterministic sampler. Network and updates are those of the other digits teachers.

    python -m distill_jax.sweep configs/sweeps/digits_edm.py
"""

from distill_jax.config import check_size, digits, digits_teacher, pipeline, smoke

LAWS = {"uniform": None, "lognormal": ("lognormal", 0.002, 80.0)}
SOLVERS = {"heun": 18, "ddim": 64}


def get_sweep(size="full"):
    """Returns a config for each of 2 laws of the noise level x 2 samplers."""
    check_size(size, "full", "smoke")
    configs = {}
    for solver, steps in SOLVERS.items():
        for law, levels in LAWS.items():
            config = digits()
            config.schedule, config.parameterization = {"name": "karras"}, "edm"
            config.evaluate.w = (0.0,)
            recipe = dict(weighting="edm", levels=levels, solver=solver, num_steps=steps)
            config.stages = pipeline(digits_teacher(**recipe))
            configs[f"{law}, {solver}"] = (
                config if size == "full" else smoke(config, width=32, blocks=1)
            )
    return configs
