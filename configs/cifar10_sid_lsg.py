"""CIFAR-10, class-conditional: SiD with long and short guidance, kappa 1.5, in one call.

Zhou et al. (2024, arXiv:2406.01561) train only Stable Diffusion: alpha, kappa, levels, weighting
and Adam's options are theirs, learning rate and updates those of SiD on CIFAR-10. Nothing is
published for CIFAR-10.

    python -m distill_jax.main --config=configs/cifar10_sid_lsg.py --workdir=runs/cifar10_sid_lsg
    python -m distill_jax.main --config=configs/cifar10_sid_lsg.py:smoke    # fake data, CPU
"""

from distill_jax.config import (
    LSG,
    MATCHING,
    check_size,
    cifar10,
    paper_teacher,
    pipeline,
    smoke_images,
    stage,
)


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "smoke")
    config = cifar10()
    config.batch_size = 256
    config.matmul_precision = "highest"  # Released runs forbid TF32.
    config.stages = pipeline(
        paper_teacher(steps=800_000, learning_rate=2e-4, weight_decay=1e-3),
        stage(
            "sid_lsg",
            "sid_lsg",
            steps=390_625,
            learning_rate=1e-5,
            decay_to=1.0,
            ema_decay=0.999645,
            kappas=1.5,
            **LSG,
            **MATCHING,
        ),
    )
    return config if size == "full" else smoke_images(config, 32, num_classes=10)
