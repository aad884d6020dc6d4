"""CIFAR-10, class-conditional: guided distillation to 1 step, w in [0, 4].

Meng et al. (2023, arXiv:2210.03142). Published: FID 5.98 in 1 step, as quoted elsewhere, without
its w. The paper's text was not at hand: learning rates and updates of stage 1 are ours, the other
values are those of progressive distillation.

    python -m distill_jax.main --config=configs/cifar10_guided.py --workdir=runs/cifar10_guided
    python -m distill_jax.main --config=configs/cifar10_guided.py:gpu      # 31 M, one accelerator
    python -m distill_jax.main --config=configs/cifar10_guided.py:small    # 1.4 M, CPU, minutes
    python -m distill_jax.main --config=configs/cifar10_guided.py:smoke    # fake data, CPU
"""

from distill_jax.config import check_size, cifar10, halvings, pipeline, smoke_images, stage

# Batch size; updates: teacher, stage 1, each round, each round to 2 and 1 steps; first N.
SIZES = {
    "full": (128, 800_000, 100_000, 50_000, 100_000, 512),
    "gpu": (256, 40_000, 10_000, 2_000, 5_000, 64),
    "small": (16, 300, 50, 25, 25, 4),
    "smoke": (4, 8, 8, 8, 8, 2),
}


def get_config(size="full"):
    """Returns the config of the chain teacher -> guided -> N, N / 2, ..., 1 steps."""
    check_size(size, *SIZES)
    batch, *updates, most, start = SIZES[size]
    config = cifar10()
    config.published = "meng_2023/cifar10"
    config.evaluate.w = (0.0, 0.3, 1.0, 2.0, 4.0)  # The paper's.
    if size == "gpu":
        small = dict(channels=128, embedding=512, multipliers=(1, 2, 2), blocks=2, attention=(16,))
        config.model.update(**small, dropout=0.1, dtype="bfloat16")
    elif size == "small":
        small = dict(channels=32, embedding=128, multipliers=(1, 2, 2), blocks=1, attention=(8,))
        config.model.update(**small, dropout=0.0)
        config.evaluate.update(w=(0.0, 1.0), num_samples=50)
    config.batch_size = batch
    config.save_every = min(10_000, updates[0] // 2)
    rates = dict(learning_rate=2e-4, warmup=min(1000, updates[0] // 10), decay_to=1.0)
    rates.update(ema_decay=0.9999, num_steps=1024)
    if size != "full":
        rates.update(ema_decay=0.99 if size == "small" else 0.999, num_steps=64)
    w_range = (0.0, 4.0)
    config.stages = pipeline(
        stage("teacher", "diffusion", steps=updates[0], weight_decay=1e-3, **rates),
        stage("guided", "guided", steps=updates[1], w_range=w_range, new=("w_embed",), **rates),
        *halvings(
            start=start,
            steps={"default": updates[2], 2: most, 1: most},
            learning_rate=5e-5,
            w_range=w_range,
        ),
    )
    if size != "smoke":
        return config
    return smoke_images(config, 32, "unet", num_classes=10)
