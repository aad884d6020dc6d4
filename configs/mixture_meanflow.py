"""Eight modes in the plane, an exact teacher: MeanFlow to one call, in minutes on a CPU.

Geng et al. (2025, arXiv:2505.13447), on the paper's schedule, a rectified flow. The teacher is the
mixture's exact denoiser, so l2 is the distance from the true end of the path from the same noise.
The student starts from a network that was trained for seconds.

    launch/local.sh --config=configs/mixture_meanflow.py            # minutes on two CPU cores
    launch/local.sh --config=configs/mixture_meanflow.py:smoke      # seconds; draws noise
"""

from distill_jax.config import check_size, mixture, mixture_teachers, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of an exact teacher, a trained network, and a student."""
    check_size(size, "full", "smoke")
    config = mixture()
    config.schedule = {"name": "rectified_flow"}
    config.model.time_scale = 10.0  # Smooth in the time, of which MeanFlow takes the derivative.
    config.stages = pipeline(
        *mixture_teachers(),
        stage(
            "meanflow",
            "meanflow",
            teacher="exact",
            init="network",
            new=("target_embed",),
            steps=3000,
            learning_rate=1e-3,
            ema_decay=0.995,
            levels=("uniform", 1e-3, 1e3),
            pairs=0.5,
            power=0.5,
        ),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
