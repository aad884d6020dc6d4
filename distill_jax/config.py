"""Builders of configs: plain functions that return ConfigDicts. Imports no other module of ours.

A config has the data, the network, and the `stages` in their order. `base` and `stage` list every
key. The options of a method, network or dataset are the arguments of the entry of METHODS, NETWORKS
or DATASETS with that `name`.
"""

from typing import Any

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """Returns all keys of a config with their defaults; set `data`, `model` and `stages`."""
    return ConfigDict(
        {
            "seed": 0,
            "batch_size": 128,
            "microbatches": 1,  # Parts of a batch whose gradients are accumulated, to save memory.
            # Iterations per compiled call; more than one for tiny networks on fast devices.
            "updates_per_call": 1,
            # Entries of DATASETS, NETWORKS, SCHEDULES and PARAMETERIZATIONS. All but the last may
            # also be package.module:Name, the user's own code: docs/extending.md.
            "data": {"name": "digits"},
            # The maps from images to latents and from captions to tokens: {} for none, an entry of
            # CODECS or CONDITIONERS, which is fitted first, or {"path": DIR} of a finished one.
            "codec": {},
            "conditioner": {},
            # Where latents and tokens are kept: "" WORKDIR/cache, "none", or a --out of cache.
            "cache": {"path": "", "dtype": "float32"},
            "model": {"name": "mlp"},
            "schedule": {"name": "cosine"},
            "parameterization": "v",
            "optimizer": {"b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": 1.0},  # 0: not clipped.
            # Type of the frozen teacher's kernels; "bfloat16" halves their memory.
            "frozen_dtype": "float32",
            # Precision of float32 matrix products and convolutions in networks. "default" is the
            # device's choice (TF32, bfloat16), "highest" float32: jax.default_matmul_precision.
            "matmul_precision": "default",
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},  # Devices on each axis; -1: the rest.
            # Iterations between lines of the log, and between saved states. The newest `keep`
            # states are kept, and every state at a multiple of `keep_every` iterations (0: none).
            # When a stage begins, other states of earlier ones are deleted unless `keep_states`.
            "log_every": 50,
            "save_every": 1000,
            "keep": 2,
            "keep_every": 0,
            "keep_states": False,
            # Guidance strengths of grids and report, the report's samples per row, and the
            # variances at which it also samples the teacher with the ancestral sampler.
            # `features` names a published network, see evaluation.feature_networks; "" is a
            # classifier that is trained on the data. In training, a stage's EMA is measured with
            # `few` samples every `every` iterations (0: never), and after the last. `keep_best` is
            # "distance", or another measure such as "recall": final/ then has the best EMA.
            "evaluate": {
                "w": (0.0, 1.0, 2.0, 4.0),
                "num_samples": 2000,
                "ancestral": (),
                "features": "",
                "every": 0,
                "few": 500,
                "keep_best": "",
            },
            # Names package.module:Name of code that the directory of a teacher may import, in
            # addition to the names in this config.
            "allow": (),
            # Published numbers to compare with, an entry of evaluation.published.PUBLISHED.
            "published": "",
            "stages": {},
        },
        convert_dict=True,
    )


def stage(
    name: str,
    method: str,
    *,
    steps: int,
    learning_rate: float,
    teacher: str = "",
    new: tuple[str, ...] = (),
    **options: Any,
) -> dict[str, Any]:
    """Returns the config of one stage: a method, its teacher, and its optimizer settings.

    Args:
      name: name of the stage; its directory is s<index>_<name>.
      method: an entry of METHODS, or package.module:Name of the user's own method.
      steps: number of iterations.
      learning_rate: the largest learning rate, for every trained network.
      teacher: name of a stage or path of a finished network; "" is the previous stage.
      new: modules of the student that the teacher lacks.
      **options: arguments of the method, and these options of the stage. `warmup` (iterations),
        `decay_to` (fraction of the learning rate at the end), `weight_decay` (decoupled),
        `ema_decay` and `ema_ramp`: see update.Rates. `init`: a stage or path, whose weights the
        student starts from instead of the teacher's. `keep_fake=True`: saves the fake network in
        final/ too. `init_fake`: a stage or path with such a fake network, which the fake network of
        this stage starts from. `model`: a network instead of the config's. `optimizer`: keys that
        replace the config's. `batch_size`: replaces the config's unless 0. `lora`: rank of adapters
        to train instead of the weights, 0 for none. `base`: path of the network whose weights the
        adapters of the teacher or of `init` change, if it is outside their workdir.
    """
    rates: dict[str, Any] = {"warmup": 0, "decay_to": 0.0, "weight_decay": 0.0}
    rates.update({"ema_decay": 0.0, "ema_ramp": 0.0, "keep_fake": False})
    rates.update({"init": "", "init_fake": "", "base": ""})
    rates.update({"model": {}, "optimizer": {}, "batch_size": 0, "lora": 0})
    rates.update({key: options.pop(key) for key in list(options) if key in rates})
    return {
        "name": name,
        "method": {"name": method, **options},
        "teacher": teacher,
        "new": tuple(new),
        "steps": steps,
        "learning_rate": learning_rate,
        **rates,
    }


def halvings(
    start: int,
    end: int = 1,
    *,
    steps: Any,
    method: str = "progressive",
    prefix: str = "n",
    teacher: str = "",
    **options: Any,
) -> list[dict[str, Any]]:
    """Returns stages with start, start / 2, ..., end sampling steps, each the teacher of the next.

    Args:
      start: sampling steps of the first student.
      end: sampling steps of the last student.
      steps: iterations of a round; a dict {num_steps: iterations} with a "default" sets each round.
      method: method of all rounds, an entry of METHODS.
      prefix: prefix of the stages' names, before the number of steps in four digits.
      teacher: teacher of the first round; "" is the previous stage.
      **options: options of `stage` and of the method, for all rounds.

    Raises:
      ValueError: unless start is end times a power of two, or of the option `factor`.
    """
    factor = options.get("factor", 2)
    if factor < 2:
        raise ValueError(f"factor is {factor}; expected a whole number from 2")
    numbers = [max(start, 1)]
    while numbers[-1] > max(end, 1) and numbers[-1] % factor == 0:
        numbers.append(numbers[-1] // factor)
    if numbers[0] != start or numbers[-1] != end:
        raise ValueError(
            f"halvings from {start} to {end} steps: start must be end times a power of "
            f"{'two' if factor == 2 else factor}, such as {factor**5} to 1"
        )
    table = steps if isinstance(steps, dict) else {"default": steps}
    if missing := [n for n in numbers if n not in table and "default" not in table]:
        raise ValueError(f'steps has no iterations for {missing} and no "default"; got {steps}')
    return [
        stage(
            f"{prefix}{n:04d}",
            method,
            num_steps=n,
            steps=table[n if n in table else "default"],
            teacher=teacher if n == start else "",
            **options,
        )
        for n in numbers
    ]


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


def smoke_shapes(config: ConfigDict) -> ConfigDict:
    """Returns `smoke` of a config for shapes, with few pictures and a small text encoder."""
    config = smoke(config, width=32, blocks=1)
    config.data.update(count=64, tests=64)
    config.conditioner.update(width=32, layers=1, updates=2)
    config.updates_per_call = 1
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


# Options of score and distribution matching stages, from the released code of SiD (Zhou et al.
# 2024): the EMA's half-life grows with the run, Adam has no first moment, nothing is clipped.
MATCHING = {"ema_ramp": 0.05, "optimizer": {"b1": 0.0, "b2": 0.999, "clip_norm": 0.0}}


def check_size(size: str, *known: str) -> None:
    """Raises ValueError unless the size, the text after FILE.py:, is known."""
    if size not in known:
        raise ValueError(f"unknown size {size!r} of the config; known: {', '.join(known)}")


def _smallest_unet(size: int) -> dict[str, Any]:
    """Returns UNet options with levels down to 32 pixels, where the middle has attention."""
    levels = (1,) * (size // 32).bit_length()
    options = {"channels": 32, "embedding": 32, "blocks": 1, "attention": (), "heads": 1}
    return {**options, "multipliers": levels, "resblock_resample": False}


# Options of the smallest networks for images of a given size.
SMALLEST = {
    "mlp": lambda size: {"width": 32, "blocks": 1},
    "dit": lambda size: {"patch": 8, "width": 32, "blocks": 2, "heads": 2},
    "unet": _smallest_unet,
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


def pipeline(*stages: dict[str, Any]) -> ConfigDict:
    """Returns the stages by names whose alphabetical order is the order of the run."""
    return ConfigDict({f"s{i:02d}_{entry['name']}": entry for i, entry in enumerate(stages)})


def smoke(config: ConfigDict, **model: Any) -> ConfigDict:
    """Returns a config of the same stages that runs in seconds: few iterations, images and samples.

    Args:
      config: the config at full size.
      **model: options of a smaller network.
    """
    config = config.copy_and_resolve_references()
    config.model.update(model)
    config.batch_size = 16
    config.log_every, config.save_every = 2, 3
    config.evaluate.num_samples = config.evaluate.few = 40
    for entry in config.stages.values():
        entry.steps, entry.warmup, entry.batch_size = min(entry.steps, 8), min(entry.warmup, 2), 0
    return config
