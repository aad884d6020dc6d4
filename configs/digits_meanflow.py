"""Handwritten digits, 8x8: MeanFlow, a network of average velocities, in one call.

Geng et al. (2025, arXiv:2505.13447), on the paper's schedule, a rectified flow. The paper has no
digits; every number here is ours.

    launch/local.sh --config=configs/digits_meanflow.py            # minutes on two CPU cores
    launch/local.sh --config=configs/digits_meanflow.py:smoke      # seconds; draws noise
"""

from distill_jax.config import check_size, digits, digits_teacher, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "smoke")
    config = digits()
    config.schedule, config.parameterization = {"name": "rectified_flow"}, "flow"
    config.model.time_scale = 10.0  # Smooth in the time, of which MeanFlow takes the derivative.
    config.evaluate.w = (0.0,)
    config.stages = pipeline(
        digits_teacher(),
        stage(
            "meanflow",
            "meanflow",
            steps=1500,
            batch_size=128,
            learning_rate=1e-3,
            ema_decay=0.995,
            new=("target_embed",),
            levels=("uniform", 1e-3, 1e3),
            pairs=0.75,
            power=0.5,
        ),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
