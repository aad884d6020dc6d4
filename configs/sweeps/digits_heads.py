"""Digits: teachers with every parameterization and weighting, sampled by DDIM and ancestrally.

The grid is that of Salimans & Ho (2022, arXiv:2202.00512), Table 1; the ancestral sampler's
variance is tuned.

    python -m distill_jax.sweep configs/sweeps/digits_heads.py
"""

from distill_jax.config import check_size, digits, digits_teacher, pipeline, smoke


def get_sweep(size="full"):
    """Returns a config for each of 4 parameterizations x 3 weightings."""
    check_size(size, "full", "smoke")
    configs = {}
    for head in ("x", "eps", "v", "both"):
        for weighting in ("snr", "snr_trunc", "snr_plus_one"):
            config = digits()
            config.parameterization = head
            config.evaluate.update(w=(0.0,), ancestral=(0.0, 0.25, 0.5, 0.75, 1.0))
            config.stages = pipeline(digits_teacher(weighting=weighting))
            configs[f"{head}, {weighting}"] = (
                config if size == "full" else smoke(config, width=32, blocks=1)
            )
    return configs
