"""Eight modes in the plane, an exact teacher: SiD to one call, without data, in minutes on a CPU.

Zhou et al. (2024, arXiv:2404.04057). The teacher is the mixture's exact denoiser, so a report shows
only the method's error. The student starts from a network that was trained for seconds.

    launch/local.sh --config=configs/mixture_sid.py            # minutes on two CPU cores
    launch/local.sh --config=configs/mixture_sid.py:smoke      # seconds; draws noise
"""

from distill_jax.config import check_size, mixture, mixture_teachers, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of an exact teacher, a trained network, and a student."""
    check_size(size, "full", "smoke")
    config = mixture()
    config.stages = pipeline(
        *mixture_teachers(),
        stage(
            "sid",
            "sid_lsg",
            teacher="exact",
            init="network",
            steps=2000,
            learning_rate=1e-3,
            ema_decay=0.995,
            optimizer={"b1": 0.0, "clip_norm": 0.0},
            alpha=1.0,
            fake_updates=2,
        ),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
