"""Eight modes in the plane, an exact teacher: sCM, in minutes on a CPU.

Lu & Song (2024, arXiv:2410.11081). The teacher is the mixture's exact denoiser, so a report shows
only the method's error. The student starts from a network that was trained for seconds.

    launch/local.sh --config=configs/mixture_scm.py            # minutes on two CPU cores
    launch/local.sh --config=configs/mixture_scm.py:smoke      # seconds; draws noise
"""

from distill_jax.config import check_size, mixture, mixture_teachers, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of an exact teacher, a trained network, and a student."""
    check_size(size, "full", "smoke")
    config = mixture()
    config.model.time_scale = 10.0  # Smooth in the time, of which sCM takes the derivative.
    config.stages = pipeline(
        *mixture_teachers(),
        stage(
            "scm",
            "scm",
            teacher="exact",
            init="network",
            steps=2500,
            learning_rate=1e-3,
            ema_decay=0.995,
        ),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
