"""ImageNet 64x64: guided distillation to 1 step, w in [0, 4], both samplers.

Meng et al. (2023, arXiv:2210.03142). Published: FID 7.54 in 1 step. The paper's text was not at
hand: updates and batch are those of progressive distillation, rates of stage 1 from memory.

    python -m distill_jax.main --config=configs/imagenet64_guided.py --workdir=gs://bucket/guided
    python -m distill_jax.main --config=configs/imagenet64_guided.py:stochastic    # one sampler
    python -m distill_jax.main --config=configs/imagenet64_guided.py:smoke    # fake data, CPU
"""

from distill_jax.config import base, check_size, halvings, paper_unet, pipeline, smoke_images, stage


def get_config(size="full"):
    """The chain teacher -> guided -> 512, ..., 1 steps, deterministic and again stochastic."""
    check_size(size, "full", "deterministic", "stochastic", "smoke")
    config = base()
    config.data = dict(name="tfds", dataset="imagenet2012", data_dir="", size=64, num_labels=1000)
    config.data.splits = ("train", "validation")
    config.model = paper_unet("imagenet64", dtype="bfloat16")
    config.batch_size = 2048
    config.save_every = 5000
    config.evaluate.w = (0.0, 0.3, 1.0, 2.0, 4.0)
    rates = dict(learning_rate=3e-4, warmup=1000, decay_to=1.0, ema_decay=0.9999, num_steps=1024)
    w_range = (0.0, 4.0)
    options = dict(
        start=1 if size == "smoke" else 512,
        steps={"default": 50_000, 2: 100_000, 1: 100_000},
        learning_rate=1e-4,
        w_range=w_range,
        teacher="guided",
    )
    rounds = {
        "deterministic": halvings(**options),
        "stochastic": halvings(method="stochastic", prefix="s", **options),
    }
    config.stages = pipeline(
        stage("teacher", "diffusion", steps=550_000, label_dropout=0.1, **rates),
        stage("guided", "guided", steps=100_000, w_range=w_range, new=("w_embed",), **rates),
        *(rounds.get(size) or rounds["deterministic"] + rounds["stochastic"]),
    )
    if size != "smoke":
        return config
    return smoke_images(config, 64, num_classes=1000)
