"""Functions for any config: all keys of a config and of a stage, halvings, and the smoke size."""

from typing import Any

from ml_collections import ConfigDict

# benchmarks/reference.py prints the comment of every key, beside it or above it, in docs/.
_OPTIMIZER = {
    "b1": 0.9,  # Adam's decay of the gradient's mean.
    "b2": 0.999,  # Adam's decay of its square.
    "eps": 1e-8,  # Adam's smallest divisor.
    "clip_norm": 1.0,  # Largest norm of a gradient; 0: not clipped.
}
_MESH = {
    "data": -1,  # Devices that split the batch; -1: the rest.
    "fsdp": 1,  # Devices that split the batch and the parameters.
    "tensor": 1,  # Devices that split single layers.
}
_CACHE = {
    "path": "",  # Where latents and tokens are kept: "" WORKDIR/cache, "none", or a --out of cache.
    "dtype": "float32",  # Of latents and tokens in files: "float32" or "float16".
}
_EVALUATE = {
    "w": (0.0, 1.0, 2.0, 4.0),  # Guidance strengths of grids and report.
    "num_samples": 2000,  # The report's samples per row.
    "ancestral": (),  # Variances at which it also samples the teacher by the ancestral sampler.
    # A published network, see evaluation.feature_networks; "": a classifier trained on the data.
    "features": "",
    # Iterations between measurements of a stage's EMA in training, and one after the last; 0: none.
    "every": 0,
    "few": 500,  # Samples of such a measurement.
    # "distance", or another measure such as "recall": final/ then has the best EMA; "": the last.
    "keep_best": "",
}


def base() -> ConfigDict:
    """Returns all keys of a config with their defaults; set `data`, `model` and `stages`."""
    return ConfigDict(
        {
            "seed": 0,  # Of initial weights, batches and noise.
            "batch_size": 128,  # Examples of an update, over all devices.
            "microbatches": 1,  # Parts of a batch whose gradients are accumulated, to save memory.
            # Iterations per compiled call; more than one for tiny networks on fast devices.
            "updates_per_call": 1,
            "data": {"name": "digits"},  # An entry of DATASETS or package.module:Name, and options.
            # The map from images to latents: {} for none, an entry of CODECS, which is fitted
            # first, or {"path": DIR} of a finished one.
            "codec": {},
            "conditioner": {},  # The map from captions to tokens: as codec, or one of CONDITIONERS.
            "masks": {},  # Of networks that inpaint: {} or an entry of MASKS, {"name": "random"}.
            "cache": _CACHE,  # Latents and tokens that are encoded once, before the first stage.
            "model": {"name": "mlp"},  # An entry of NETWORKS or package.module:Name, and options.
            # An entry of SCHEDULES or package.module:Name, and options.
            "schedule": {"name": "cosine"},
            "parameterization": "v",  # What the network predicts, an entry of PARAMETERIZATIONS.
            "optimizer": _OPTIMIZER,  # Adam's numbers.
            "frozen_dtype": "float32",  # Of the frozen teacher's kernels; "bfloat16" halves them.
            # Precision of float32 matrix products and convolutions in networks. "default" is the
            # device's choice (TF32, bfloat16), "highest" float32: jax.default_matmul_precision.
            "matmul_precision": "default",
            "mesh": _MESH,  # Devices on each axis.
            "log_every": 50,  # Iterations between lines of the log.
            "save_every": 1000,  # Iterations between saved states.
            "keep": 2,  # How many of the newest states are kept.
            "keep_every": 0,  # States at multiples of so many iterations are kept, too; 0: none.
            # Whether states of earlier stages stay when the next stage begins.
            "keep_states": False,
            "evaluate": _EVALUATE,  # Pictures, the report, and measurements in training.
            # Code, package.module:Name, that a teacher may import beside what this config names.
            "allow": (),
            # Published numbers to compare with, an entry of evaluation.published.PUBLISHED.
            "published": "",
            "teacher": "",  # Directory of a finished network that the chain starts from.
            "stages": {},  # The stages in their order, by `pipeline`.
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
      **options: arguments of the method, and these options of the stage.
        `warmup`: iterations in which the learning rate rises.
        `decay_to`: fraction of the learning rate at the end; the way there is linear.
        `weight_decay`: decoupled, times the learning rate.
        `ema_decay`: decay of the EMA, which is the result; 0 takes the weights themselves.
        `ema_ramp`: limit of its half-life, as a fraction of the iterations done; 0 for none.
        `keep_fake`: whether the fake network is saved in final/ too.
        `posthoc`: sigma_rel of averages that are stored, such as (0.05, 0.10).
        `snapshot_every`: iterations between two snapshots of these averages.
        `snapshot_dtype`: their dtype, "float32" or "bfloat16".
        `init`: a stage or path, whose weights the student starts from, not from the teacher's.
        `init_fake`: a stage or path with a fake network, which this stage's fake starts from.
        `base`: path of the network that the adapters of the teacher or of `init` change, if it is
          outside their workdir.
        `onto`: a stage or path of a network, to whose weights the change of this stage is added;
          the result has that network's sampler.
        `model`: a network instead of the config's.
        `optimizer`: keys that replace those of the config's optimizer.
        `batch_size`: replaces the config's unless 0.
        `lora`: rank of adapters to train instead of the weights; 0 for none.
    """
    rates: dict[str, Any] = {"warmup": 0, "decay_to": 0.0, "weight_decay": 0.0}
    rates.update({"ema_decay": 0.0, "ema_ramp": 0.0, "keep_fake": False})
    rates.update({"posthoc": (), "snapshot_every": 0, "snapshot_dtype": "float32"})
    rates.update({"init": "", "init_fake": "", "base": "", "onto": ""})
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


def pipeline(*stages: dict[str, Any]) -> ConfigDict:
    """Returns the stages by names whose alphabetical order is the order of the run."""
    return ConfigDict({f"s{i:02d}_{entry['name']}": entry for i, entry in enumerate(stages)})


def with_teacher(config: ConfigDict, steps: int = 1, **options: Any) -> ConfigDict:
    """Returns a config whose first stage has no directory as its teacher.

    A stage "diffusion" then trains a new network, and any other gets a new stage `teacher` before,
    which is also the teacher of later stages that name the directory.

    Args:
      config: a config whose first stage names the directory of a finished network.
      steps: iterations of the new stage.
      **options: its other options.
    """
    config = config.copy_and_resolve_references()
    stages = [config.stages[name].to_dict() for name in sorted(config.stages)]
    directory, stages[0]["teacher"] = stages[0]["teacher"], ""
    if stages[0]["method"]["name"] != "diffusion":
        for entry in stages[1:]:
            entry["teacher"] = "teacher" if entry["teacher"] == directory else entry["teacher"]
        rates: dict[str, Any] = dict(steps=steps, learning_rate=1e-4)
        stages.insert(0, stage("teacher", "diffusion", **rates, **options))
    config.stages = pipeline(*stages)
    return config


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


def check_size(size: str, *known: str) -> None:
    """Raises ValueError unless the size, the text after FILE.py:, is known."""
    if size not in known:
        raise ValueError(f"unknown size {size!r} of the config; known: {', '.join(known)}")
