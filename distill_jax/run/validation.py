"""What the keys and numbers of a config must satisfy, each with one message."""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from distill_jax.runtime.registry import suggestion

# Numbers by the smallest and the largest that they may be.
RANGES = {
    "log_every": (1, math.inf),
    "save_every": (1, math.inf),
    "microbatches": (1, math.inf),
    "updates_per_call": (1, math.inf),
    "seed": (0, math.inf),
    "keep_every": (0, math.inf),
    "batch_size": (0, math.inf),
    "steps": (1, math.inf),
    "learning_rate": (0, math.inf),
    "warmup": (0, math.inf),
    "decay_to": (0, math.inf),
    "weight_decay": (0, math.inf),
    "ema_decay": (0, 1),
    "ema_ramp": (0, math.inf),
}
MATMUL_PRECISIONS = ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")
# What a value may be, by the type of its default.
TYPES = {
    ConfigDict: ((ConfigDict, dict), "a dict"),
    dict: ((ConfigDict, dict), "a dict"),
    tuple: ((tuple, list), "a tuple"),
    float: ((float, int), "a number"),
    int: (int, "a whole number"),
    str: (str, "a string"),
    bool: (bool, "True or False"),
}


def flat(tree: Any, path: str = "config") -> dict[str, Any]:
    """The values of a config as plain data, by dotted key."""
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{path}.{key}").items()}


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """A line for every key of two flat configs whose values differ, what is there first."""
    both = old.keys() | new.keys()
    # A key that one of them lacks is an option of another version, whose default is empty or 0.
    keys = sorted(key for key in both if (old.get(key) or None) != (new.get(key) or None))
    return [f"{key}: {old.get(key)} there, {new.get(key)} now" for key in keys]


def check_keys(config: ConfigDict, known: ConfigDict | dict[str, Any], path: str) -> None:
    """Raises KeyError for a key that is not in `known`, ValueError for another type than there."""
    for key, value in config.items():
        if key not in known:
            raise KeyError(
                f"unknown key {path}.{key}; known: {', '.join(known)}{suggestion(key, known)}"
            )
        _check_type(value, known[key], f"{path}.{key}")
        if isinstance(known[key], ConfigDict) and known[key] and "name" not in known[key]:
            check_keys(value, known[key], f"{path}.{key}")


def _check_type(value: Any, known: Any, path: str) -> None:
    types, expected = TYPES[type(known)]
    if isinstance(value, bool) != isinstance(known, bool) or not isinstance(value, types):
        raise ValueError(f"{path} is {value!r}; expected {expected}")


def check_ranges(config: ConfigDict, path: str) -> None:
    """Raises ValueError for a number in RANGES that lies outside."""
    for key, (low, high) in RANGES.items():
        if key in config and not low <= config[key] <= high:
            expected = f"at least {low}" if high == math.inf else f"a number from {low} to {high}"
            raise ValueError(f"{path}{key} is {config[key]}; expected {expected}")


def check_config(config: ConfigDict) -> None:
    """Raises ValueError for numbers of a config outside its stages that make no sense."""
    check_ranges(config, "config.")
    if config.frozen_dtype not in ("float32", "bfloat16"):
        raise ValueError(
            f"config.frozen_dtype is {config.frozen_dtype!r}; expected 'float32' or 'bfloat16'"
        )
    if config.matmul_precision not in MATMUL_PRECISIONS:
        raise ValueError(
            f"config.matmul_precision is {config.matmul_precision!r}; expected one of "
            f"{', '.join(MATMUL_PRECISIONS)}"
        )
    for key in ("log_every", "save_every"):
        if config[key] % config.updates_per_call:
            raise ValueError(
                f"config.{key} is {config[key]}; expected a multiple of config.updates_per_call, "
                f"{config.updates_per_call}: a run logs, saves and stops between calls"
            )
    evaluate = config.evaluate
    strengths = evaluate.w and min(evaluate.w) >= 0
    variances = all(0 <= variance <= 1 for variance in evaluate.ancestral)
    if evaluate.num_samples < 2 or not strengths or not variances:
        raise ValueError(
            f"config.evaluate is {evaluate.to_dict()}; expected 2 samples or more, at least one w, "
            "each from 0, and as `ancestral` variances from 0 to 1"
        )


def check_microbatches(size: int, parts: int, ways: int) -> None:
    """Raises ValueError unless a batch of `size` is divided by its parts and by the devices."""
    if size % (parts * ways):
        raise ValueError(
            f"batch_size {size} is not divisible by microbatches x data x fsdp = {parts} x {ways}; "
            f"choose a multiple of {parts * ways}, or fewer microbatches"
        )
