"""ImageNet 64x64: guided distillation to 1 step, w in [0, 4], both samplers.

Meng et al. (2023, arXiv:2210.03142). Published: FID 7.54 in 1 step, at w = 1 (w from memory). The
paper's text was not at hand: updates and batch are those of progressive distillation, and the
learning rates of stage 1 are from memory.

    python -m distill_jax.main --config=configs/imagenet64_guided.py --workdir=gs://bucket/guided
    python -m distill_jax.main --config=configs/imagenet64_guided.py:stochastic    # one sampler
    python -m distill_jax.main --config=configs/imagenet64_guided.py:smoke    # fake data, CPU
"""

from distill_jax.config import (
    check_size,
    halvings,
    imagenet64,
    paper_teacher,
    pipeline,
    smoke_images,
    stage,
)


def get_config(size="full"):
    """Returns the config of teacher -> guided -> 512, ..., 2 stochastic, 512, ..., 1 steps."""
    check_size(size, "full", "deterministic", "stochastic", "smoke")
    config = imagenet64(dtype="bfloat16")
    config.published = "meng_2023/imagenet64"
    config.evaluate.w = (0.0, 0.3, 1.0, 2.0, 4.0)
    rates = dict(learning_rate=3e-4, warmup=1000, decay_to=1.0, ema_decay=0.9999, num_steps=1024)
    w_range = (0.0, 4.0)
    options = dict(
        learning_rate=1e-4,
        w_range=w_range,
        teacher="guided",
    )
    updates = {"default": 50_000, 2: 100_000, 1: 100_000}
    # At one step both samplers are the same. The last stochastic round has half of each batch at
    # t = 1, where it learns that step, so it gets the updates of two rounds.
    stochastic = dict(end=2, steps={**updates, 2: 200_000}, method="stochastic", prefix="s")
    first, second = (1, 2) if size == "smoke" else (512, 512)
    rounds = {
        "deterministic": halvings(start=first, steps=updates, **options),
        "stochastic": halvings(start=second, **stochastic, **options),
    }
    config.stages = pipeline(
        paper_teacher(steps=550_000, learning_rate=3e-4, label_dropout=0.1),
        stage("guided", "guided", steps=100_000, w_range=w_range, new=("w_embed",), **rates),
        *(rounds.get(size) or rounds["stochastic"] + rounds["deterministic"]),
    )
    if size != "smoke":
        return config
    return smoke_images(config, 64, num_classes=1000)
