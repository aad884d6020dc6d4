"""Configs: plain functions that return ConfigDicts. Imports nothing of ours.

A config is data, the data's network, and `stages` in the order they run. Printing it prints the
plan. Every key is named in `base` or `stage`; what a method, network or dataset takes is the
signature of the entry of METHODS, NETWORKS or DATASETS that its `name` picks.
"""

import math
from typing import Any

from ml_collections import ConfigDict


def base() -> ConfigDict:
    """The keys of every config with their defaults; `data`, `model` and `stages` are to be set."""
    return ConfigDict(
        {
            "seed": 0,
            "batch_size": 128,
            # Entries of DATASETS, NETWORKS, SCHEDULES and PARAMETERIZATIONS.
            "data": {"name": "digits"},
            "model": {"name": "mlp"},
            "schedule": {"name": "cosine"},
            "parameterization": "v",
            "optimizer": {"b1": 0.9, "b2": 0.999, "weight_decay": 0.0, "clip_norm": 1.0},
            # Devices along each axis; -1 takes the rest.
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            # Iterations between lines of the log, and between saved states, of which `keep` stay.
            "log_every": 50,
            "save_every": 1000,
            "keep": 2,
            # Guidance strengths of grids and report, and the report's samples per row.
            "evaluate": {"w": (0.0, 1.0, 2.0, 4.0), "num_samples": 2000},
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
    """One stage: a method, run from a finished network or from nothing.

    Args:
      name: of the stage; its directory is s<index>_<name>.
      method: an entry of METHODS.
      steps: iterations.
      learning_rate: the largest.
      teacher: a stage's name or the path of a finished network; "" is the stage before.
      new: modules of the student that the teacher lacks.
      **options: `warmup` (iterations), `decay_to` (fraction of the learning rate at the end),
        `ema_decay`; every other option is an argument of the method.
    """
    rates = {"warmup": 0, "decay_to": 0.0, "ema_decay": 0.0}
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
    """Stages of start, start / 2, ..., end steps, each the teacher of the next.

    Args:
      start: sampling steps of the first student.
      end: sampling steps of the last.
      steps: iterations of a round; a dict {num_steps: iterations} with a "default" tells rounds
        apart.
      method: of all rounds, an entry of METHODS.
      prefix: of their names, before the number of steps in four digits.
      teacher: of the first round; "" is the stage before.
      **options: of `stage` and of the method, alike for all rounds.

    Raises:
      ValueError: unless start is end times a power of two.
    """
    rounds = math.log2(start / end) if start >= end >= 1 else 0.5
    if rounds != int(rounds):
        raise ValueError(
            f"halvings from {start} to {end} steps: start must be end times a power of two, "
            "such as 32 to 1"
        )
    numbers = [start >> i for i in range(int(rounds) + 1)]
    table = steps if isinstance(steps, dict) else {"default": steps}
    return [
        stage(
            f"{prefix}{n:04d}",
            method,
            num_steps=n,
            steps=table.get(n, table["default"]),
            teacher=teacher if n == start else "",
            **options,
        )
        for n in numbers
    ]


def pipeline(*stages: dict[str, Any]) -> ConfigDict:
    """The stages under names whose alphabetical order is the order they run in."""
    return ConfigDict({f"s{i:02d}_{entry['name']}": entry for i, entry in enumerate(stages)})


def smoke(config: ConfigDict, **model: Any) -> ConfigDict:
    """The same stages in seconds: a few iterations, a small batch, few samples.

    Args:
      config: the full size.
      **model: smaller sizes of the network.
    """
    config = config.copy_and_resolve_references()
    config.model.update(model)
    config.batch_size = 16
    config.log_every, config.save_every = 2, 3
    config.evaluate.num_samples = 40
    for entry in config.stages.values():
        entry.steps, entry.warmup = 8, min(entry.warmup, 2)
    return config
