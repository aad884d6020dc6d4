"""Eight modes in the plane, an exact teacher: BOOT to one call, without data, in minutes on a CPU.

Gu et al. (2023, arXiv:2306.05544). The teacher is the mixture's exact denoiser, so l2 is the
distance from the true end of the path from the same noise. The student starts from a network that
was trained for seconds.

    launch/local.sh --config=configs/mixture_boot.py            # minutes on two CPU cores
    launch/local.sh --config=configs/mixture_boot.py:smoke      # seconds; draws noise
"""

from distill_jax.config import check_size, mixture, mixture_teachers, pipeline, smoke, stage


def get_config(size="full"):
    """Returns the config of an exact teacher, a trained network, and a student."""
    check_size(size, "full", "smoke")
    config = mixture()
    config.stages = pipeline(
        *mixture_teachers(),
        stage(
            "boot",
            "boot",
            teacher="exact",
            init="network",
            new=("target_embed",),
            steps=6000,
            learning_rate=2e-3,
            ema_decay=0.995,
            delta=0.04,
            solver="heun",
        ),
    )
    return config if size == "full" else smoke(config, width=32, blocks=1)
