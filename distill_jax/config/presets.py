"""Parts that several files of configs/ share: datasets, networks, teachers and smoke sizes."""

from typing import Any

from ml_collections import ConfigDict

from distill_jax.config.chains import base, halvings, smoke, stage

# Options of score and distribution matching stages, from the released code of SiD (Zhou et al.
# 2024): the EMA's half-life grows with the run, Adam has no first moment, nothing is clipped.
MATCHING = {"ema_ramp": 0.05, "optimizer": {"b1": 0.0, "b2": 0.999, "clip_norm": 0.0}}
# Options of SiD-LSG, from its released code (Zhou et al. 2024, arXiv:2406.01561).
LSG = {
    "alpha": 1.0,
    "levels": ("scaled_linear", 0.138, 12.97),
    "fake_levels": ("scaled_linear", 0.138, 12.97),
    "weighting": "snr",
    "loss_scale": 1.0,
}

# Released networks of Salimans & Ho (2022, arXiv:2202.00512), with their teachers' dropout.
_LARGE = {"embedding": 768, "blocks": 3, "attention": (8, 16, 32), "head_dim": 64, "dropout": 0.1}
PAPER_UNETS = {
    "cifar10": {
        "channels": 256,
        "embedding": 1024,
        "multipliers": (1, 1, 1),
        "blocks": 3,
        "attention": (8, 16),
        "heads": 1,
        "dropout": 0.2,
    },
    "imagenet64": {"channels": 192, "multipliers": (1, 2, 3, 4), **_LARGE},
    "lsun128": {"channels": 64, "multipliers": (1, 2, 4, 6, 8), **_LARGE},
}


def paper_unet(name: str, **options: Any) -> dict[str, Any]:
    """Returns the `model` of a config: a network of PAPER_UNETS, updated by `options`."""
    return {"name": "unet", "remat": "none", **PAPER_UNETS[name], **options}


def cifar10(**model: Any) -> ConfigDict:
    """Returns `base` for CIFAR-10, with the paper's UNet, updated by `model`."""
    config = base()
    config.data = dict(name="tfds", dataset="cifar10", data_dir="", size=32, num_labels=10)
    config.model, config.save_every = paper_unet("cifar10", **model), 10_000
    return config


def imagenet64(**model: Any) -> ConfigDict:
    """Returns `base` for ImageNet 64x64, with the paper's UNet, updated by `model`, and batch."""
    config = base()
    config.data = dict(name="tfds", dataset="imagenet2012", data_dir="", size=64, num_labels=1000)
    config.data.splits = ("train", "validation")
    config.model = paper_unet("imagenet64", **model)
    config.batch_size, config.save_every = 2048, 5000
    return config


def paper_teacher(**options: Any) -> dict[str, Any]:
    """Returns the stage `teacher` of Salimans & Ho; `steps` and `learning_rate` are required."""
    rates = dict(warmup=1000, decay_to=1.0, ema_decay=0.9999, num_steps=1024)
    return stage("teacher", "diffusion", **(rates | options))


def lsun128() -> ConfigDict:
    """Returns `base` for LSUN bedroom 128x128, with the paper's UNet, head and batch."""
    config = base()
    config.data = dict(name="tfds", dataset="lsun/bedroom", data_dir="", size=128, num_labels=1)
    config.data.update(splits=("train", "validation"), resize="triangle")
    config.model, config.parameterization = paper_unet("lsun128"), "both"
    config.batch_size, config.save_every = 2048, 5000
    return config


def paper_halvings(start: int, learning_rate: float, **options: Any) -> list[dict[str, Any]]:
    """Returns the rounds of Salimans & Ho, from `start` steps to 1."""
    updates = {"default": 50_000, 2: 100_000, 1: 100_000}
    rates: dict[str, Any] = dict(steps=updates, learning_rate=learning_rate, clip_target=False)
    return halvings(start, **(rates | options))


def sid_stage(steps: int, **options: Any) -> dict[str, Any]:
    """Returns the stage `sid` with the released settings for CIFAR-10 and batches of 256.

    Args:
      steps: number of iterations.
      **options: other options of the stage and of the method, which may replace the settings.
    """
    rates: dict[str, Any] = dict(learning_rate=1e-5, decay_to=1.0, ema_decay=0.999645, alpha=1.2)
    return stage("sid", "sid_lsg", steps=steps, **(rates | MATCHING | options))


def dmd2_stages(
    teacher: str, one_stage: bool = False, lowest: float = 0.002
) -> list[dict[str, Any]]:
    """Returns the stages of DMD2 for ImageNet 64x64 with the settings of the released scripts.

    The scripts update the student in every fifth iteration, so five of theirs are one here.

    Args:
      teacher: the teacher's stage or directory.
      one_stage: whether the GAN is there from the start, and not in a second stage `gan`.
      lowest: lowest noise level that the teacher has seen.
    """
    student: dict[str, Any] = dict(
        teacher=teacher,
        batch_size=280,  # 7 GPUs with 40 images each.
        warmup=500 // 5,
        decay_to=1.0,
        weight_decay=0.01,
        optimizer={"b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": 10.0},
        sigma_init=80.0,
        # Indices 20 to 980 of EDM's grid 0 to 999.
        levels=("karras", max(lowest, 0.00323), 72.05),
        fake_levels=("karras", lowest, 80.0),
        fake_updates=5,
    )
    gan: dict[str, Any] = dict(gan_weight=3e-3, discriminator_weight=1e-2, discriminator="spatial")
    if one_stage:
        return [stage("gan", "dmd2", steps=193_500 // 5, learning_rate=2e-6, **student, **gan)]
    last: dict[str, Any] = dict(
        init="dmd2", init_fake="dmd2", steps=(548_000 - 405_500) // 5, learning_rate=5e-7
    )
    first: dict[str, Any] = dict(steps=405_500 // 5, learning_rate=2e-6, keep_fake=True)
    return [
        stage("dmd2", "dmd2", **first, **student),
        stage("gan", "dmd2", **last, **student, **gan),
    ]


def digits(**model: Any) -> ConfigDict:
    """Returns `base` for handwritten digits, with an mlp of 1.7 million parameters, or `model`."""
    config = base()
    config.data.name = "digits"
    config.model.update(model or dict(name="mlp", width=256, blocks=3, expand=2))
    config.batch_size, config.optimizer.b2 = 256, 0.99
    return config


def digits_teacher(**options: Any) -> dict[str, Any]:
    """Returns the stage `teacher` of digits: 2500 iterations, and 64 sampling steps."""
    rates = dict(steps=2500, learning_rate=1e-3, ema_decay=0.995, num_steps=64)
    return stage("teacher", "diffusion", **(rates | options))


def shapes() -> ConfigDict:
    """Returns `base` for captioned shapes in latents 8x8x6: a codec, a text encoder and a dit."""
    config = base()
    config.data.name = "shapes"
    config.codec = dict(name="patch_pca", patch=2, channels=6, power=0.5)
    config.conditioner = dict(name="words", width=128, length=10, layers=1)
    config.model = dict(name="dit", patch=2, width=128, blocks=4, heads=4, expand=3)
    config.batch_size, config.updates_per_call, config.optimizer.b2 = 64, 10, 0.99
    config.evaluate.update(w=(0.0, 2.0, 4.0), num_samples=500)
    return config


def shapes_teacher() -> dict[str, Any]:
    """Returns the stage `teacher` of shapes: 2200 iterations, and 32 sampling steps."""
    rates: dict[str, Any] = dict(learning_rate=2e-3, warmup=100, ema_decay=0.995)
    return stage("teacher", "diffusion", steps=2200, num_steps=32, **rates)


def on_shapes(config: ConfigDict) -> ConfigDict:
    """Returns a config of latents and texts with few shapes in place of its directories."""
    config.data = dict(name="shapes", count=64, tests=64)
    config.codec = dict(name="patch_pca", patch=2)
    config.conditioner = dict(name="words", width=32, layers=1, length=10, updates=2)
    return config


def smoke_shapes(config: ConfigDict) -> ConfigDict:
    """Returns `smoke` of a config for shapes, with few pictures and a small text encoder."""
    config = smoke(config, width=32, blocks=1)
    config.data.update(count=64, tests=64)
    config.conditioner.update(width=32, layers=1, updates=2)
    config.updates_per_call = 1
    return config


def emoji(**model: Any) -> ConfigDict:
    """Returns `base` for emoji in the latents of TAEF2, with a dit of 10.6 million, or `model`."""
    config = base()
    config.data = dict(name="captioned_folder", path="emoji64", size=64)
    config.codec = dict(name="taesd", path="taef2")
    config.conditioner = dict(name="pretrained", path="minilm", length=20)
    config.model = model or dict(name="dit", patch=1, width=256, blocks=8, heads=4)
    config.batch_size, config.optimizer.b2 = 64, 0.99
    config.evaluate.update(w=(0.0, 2.0), num_samples=1000, features="efflite0")
    return config


def emoji_teacher(**options: Any) -> dict[str, Any]:
    """Returns the stage `teacher` of emoji: 30,000 iterations, and 32 sampling steps."""
    rates = dict(learning_rate=1e-3, warmup=600, decay_to=0.1, ema_decay=0.9995)
    return stage("teacher", "diffusion", steps=30_000, num_steps=32, **(rates | options))


def sized_emoji(config: ConfigDict, size: str) -> ConfigDict:
    """Returns a config for emoji at a size.

    "cpu" has a smaller network, a quarter of the teacher's iterations, a tenth of the others' at
    four times their learning rates, "smoke" needs no directories, and any other size is the config.
    """
    if size == "smoke":
        mmdit = config.model.name == "mmdit"
        network = dict(blocks=2, heads=1, head_dim=16) if mmdit else dict(width=32, blocks=1)
        config = on_shapes(smoke(config, **network))
        config.evaluate.features = ""
        for entry in config.stages.values():
            entry.ema_decay = 0.5
    if size == "cpu":
        config.model.update(patch=2, blocks=4)
        config.batch_size, config.evaluate.num_samples = 32, 200
        for name, entry in config.stages.items():
            part, times = (4, 1) if name == "s00_teacher" else (10, 4)
            entry.steps, entry.warmup = entry.steps // part, entry.warmup // part
            entry.learning_rate, entry.ema_decay = times * entry.learning_rate, 1 - 10 / entry.steps
    return config


def mixture() -> ConfigDict:
    """Returns `base` for eight modes in the plane, with an mlp."""
    config = base()
    config.data.name = "mixture"
    config.model.update(name="mlp", width=128, blocks=3, expand=2)
    config.batch_size = 512
    config.evaluate.update(w=(0.0,), num_samples=20_000)
    return config


def mixture_teachers() -> list[dict[str, Any]]:
    """Returns the stages `exact`, the exact denoiser, and `network`, which trains for seconds."""
    formula: dict[str, Any] = dict(
        model={"name": "mixture"}, steps=1, learning_rate=0.0, num_steps=256
    )
    network: dict[str, Any] = dict(steps=1000, learning_rate=1e-3, ema_decay=0.99)
    return [stage("exact", "diffusion", **formula), stage("network", "diffusion", **network)]


def _smallest_unet(size: int) -> dict[str, Any]:
    """Returns UNet options with levels down to 32 pixels, where the middle has attention."""
    levels = (1,) * (size // 32).bit_length()
    options = {"channels": 32, "embedding": 32, "blocks": 1, "attention": (), "heads": 1}
    return {**options, "multipliers": levels, "resblock_resample": False}


def _smallest_residual(size: int) -> dict[str, Any]:
    """Returns options of ADM's and EDM's UNets, with levels down to 16 pixels."""
    return {
        "channels": 8,
        "blocks": 1,
        "attention": (),
        "multipliers": (1,) * (size // 16).bit_length(),
    }


# Options of the smallest networks for images of a given size.
SMALLEST = {
    "mlp": lambda size: {"width": 32, "blocks": 1},
    "dit": lambda size: {"patch": 8, "width": 32, "blocks": 2, "heads": 2},
    "unet": _smallest_unet,
    "adm_unet": lambda size: {**_smallest_residual(size), "heads": 1},
    "song_unet": _smallest_residual,
}


def smoke_images(config: ConfigDict, size: int, network: str = "mlp", **data: Any) -> ConfigDict:
    """Returns `smoke` of a config for images of `size` pixels: fake data and the smallest network.

    Args:
      config: the config at full size.
      size: side of the images, 32 times a power of two.
      network: a name in SMALLEST; only the UNet takes long to compile.
      **data: further options of the fake data.
    """
    config = config.copy_and_resolve_references()
    config.data = ConfigDict({"name": "noise", "size": size, "count": 16, **data})
    config.model = ConfigDict({"name": network, **SMALLEST[network](size)})
    config = smoke(config)
    config.batch_size, config.evaluate.num_samples = 4, 10  # As many as a row of a grid.
    config.evaluate.few = 10
    config.evaluate.w = config.evaluate.w[:2]
    for entry in config.stages.values():
        entry.steps = min(entry.steps, 3)
        if "num_steps" in entry.method:
            entry.method.num_steps = min(entry.method.num_steps, 4)
    return config
