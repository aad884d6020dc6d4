"""Validation of the keys and values of a config; every error is one message."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from distill_jax.runtime import distributed, logging
from distill_jax.runtime.files import read_json, write_json
from distill_jax.runtime.options import Rule, check, choice, number, whole
from distill_jax.runtime.registry import suggestion

# Rules for keys of a config and of its stages.
RULES = {
    **dict.fromkeys(
        ("log_every", "save_every", "microbatches", "updates_per_call", "steps"), whole(1)
    ),
    **dict.fromkeys(("seed", "keep_every", "batch_size", "warmup"), whole(0)),
    **dict.fromkeys(("learning_rate", "decay_to", "weight_decay", "ema_ramp"), number(0)),
    "ema_decay": number(0, 1),
    "frozen_dtype": choice(("float32", "bfloat16")),
    "matmul_precision": choice(
        ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")
    ),
}
RULES_OF_EVALUATE = {
    "num_samples": whole(2),
    "w": Rule(lambda w: bool(w) and min(w) >= 0, "at least one w, each from 0"),
    "ancestral": Rule(lambda v: all(0 <= each <= 1 for each in v), "variances from 0 to 1"),
}
# The allowed types of a value and their name, by the type of the default.
TYPES: dict[type, tuple[Any, str]] = {
    ConfigDict: ((ConfigDict, dict), "a dict"),
    dict: ((ConfigDict, dict), "a dict"),
    tuple: ((tuple, list), "a tuple"),
    float: ((float, int), "a number"),
    int: (int, "a whole number"),
    str: (str, "a string"),
    bool: (bool, "True or False"),
}

# Keys of a config that may change in a resumed run: networks stay the same, up to rounding.
RESUMABLE = (
    "allow",
    "evaluate",
    "keep",
    "keep_every",
    "log_every",
    "mesh",
    "save_every",
    "updates_per_call",
)


def flat(tree: Any, path: str = "config") -> dict[str, Any]:
    """Returns the values of a config as plain data, by dotted key."""
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{path}.{key}").items()}


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns a line for every key whose values differ between two flat configs, old first."""
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [f"{key}: {old.get(key)} there, {new.get(key)} now" for key in keys]


def check_keys(config: ConfigDict, known: ConfigDict | dict[str, Any], path: str) -> None:
    """Raises KeyError for a key that `known` lacks, and ValueError for a value of another type."""
    for key, value in config.items():
        if key not in known:
            raise KeyError(
                f"unknown key {path}.{key}; known: {', '.join(known)}{suggestion(key, known)}"
            )
        _check_type(value, known[key], f"{path}.{key}")
        if isinstance(known[key], ConfigDict) and known[key] and "name" not in known[key]:
            check_keys(value, known[key], f"{path}.{key}")


def _check_type(value: Any, known: Any, path: str) -> None:
    """Raises ValueError unless the value has the type of its default."""
    types, expected = TYPES[type(known)]
    if isinstance(value, bool) != isinstance(known, bool) or not isinstance(value, types):
        raise ValueError(f"{path} is {value!r}; expected {expected}")


def check_rules(config: ConfigDict, path: str, rules: Mapping[str, Rule] = RULES) -> None:
    """Raises ValueError for the first key whose value breaks its rule."""
    for key, rule in rules.items():
        if key in config:
            check(f"{path}{key}", config[key], rule)


def check_config(config: ConfigDict) -> None:
    """Raises ValueError for invalid values of a config outside its stages."""
    check_rules(config, "config.")
    for key in ("log_every", "save_every"):
        if config[key] % config.updates_per_call:
            raise ValueError(
                f"config.{key} is {config[key]}; expected a multiple of config.updates_per_call, "
                f"{config.updates_per_call}: a run logs, saves and stops between calls"
            )
    check_rules(config.evaluate, "config.evaluate.", RULES_OF_EVALUATE)


def check_microbatches(size: int, parts: int, ways: int) -> None:
    """Raises ValueError unless microbatches times devices divide a batch of `size`."""
    if size % (parts * ways):
        raise ValueError(
            f"batch_size {size} is not divisible by microbatches x data x fsdp = {parts} x {ways}; "
            f"choose a multiple of {parts * ways}, or fewer microbatches"
        )


def claim(workdir: epath.Path, config: ConfigDict, force: bool) -> None:
    """Writes config.json, or checks the existing one against the config."""
    path = workdir / "config.json"
    new = json.loads(config.to_json())
    there = _read_config(path, force)
    if there is not None:
        both = (flat(kept(tree)) for tree in (there, new))
        lines = [f"  {line}" for line in changes(*both)]
        if lines and not force:
            raise ValueError(
                f"{workdir} holds a run of another config:\n" + "\n".join(lines) + "\n"
                "choose another --workdir, or go on there with --resume=force (finished stages "
                "stay as they are)"
            )
        for line in lines:
            logging.say(f"--resume=force: changed{line}")
    distributed.barrier("all have read the config of the workdir")
    if distributed.first():
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, new)


def _read_config(path: epath.Path, force: bool) -> dict[str, Any] | None:
    """Returns the config of a workdir; None without one, or with `force` for a damaged one."""
    if not path.exists():
        return None
    try:
        return read_json(path)
    except ValueError as error:
        if not force:
            raise ValueError(
                f"{error}; it says which config the run in {path.parent} is of: put a copy of it "
                "there, or go on with --resume=force if you are sure that your config is the same"
            ) from error
        logging.set_damaged_aside(path, "it cannot be read")
        return None


def kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a config, as plain data, that must not change in a resumed run."""
    return {key: value for key, value in config.items() if key not in RESUMABLE}
