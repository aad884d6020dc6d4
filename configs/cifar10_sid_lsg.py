"""CIFAR-10, class-conditional: SiD with long and short guidance, kappa 1.5, in one call.

Zhou et al. (2024, arXiv:2406.01561) train only Stable Diffusion: alpha, kappa, levels, weighting
and Adam's options are theirs, learning rate and updates those of SiD on CIFAR-10. Nothing is
published for CIFAR-10.

    python -m distill_jax.main --config=configs/cifar10_sid_lsg.py --workdir=runs/cifar10_sid_lsg
    python -m distill_jax.main --config=configs/cifar10_sid_lsg.py:smoke    # fake data, CPU
"""

from distill_jax.config import base, check_size, paper_unet, pipeline, smoke_images, stage


def get_config(size="full"):
    """Returns the config of the chain teacher -> one call."""
    check_size(size, "full", "smoke")
    config = base()
    config.data = dict(name="tfds", dataset="cifar10", data_dir="", size=32, num_labels=10)
    config.model = paper_unet("cifar10")
    config.batch_size = 256
    config.matmul_precision = "highest"  # Released runs forbid TF32.
    config.save_every = 10_000
    rates = dict(learning_rate=2e-4, warmup=1000, decay_to=1.0, weight_decay=1e-3)
    config.stages = pipeline(
        stage("teacher", "diffusion", steps=800_000, ema_decay=0.9999, num_steps=1024, **rates),
        stage(
            "sid_lsg",
            "sid_lsg",
            steps=390_625,
            learning_rate=1e-5,
            decay_to=1.0,
            ema_decay=0.999645,
            ema_ramp=0.05,
            optimizer={"b1": 0.0, "b2": 0.999, "clip_norm": 0.0},
            alpha=1.0,
            kappas=1.5,
            levels=("scaled_linear", 0.138, 12.97),
            fake_levels=("scaled_linear", 0.138, 12.97),
            weighting="snr",
            loss_scale=1.0,
        ),
    )
    return config if size == "full" else smoke_images(config, 32, num_classes=10)
