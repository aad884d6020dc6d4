"""Validation of the keys and values of a config; every error is one message."""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from distill_jax.diffusion.spec import DataSpec
from distill_jax.evaluation.feature_networks import NAMES
from distill_jax.evaluation.published import PUBLISHED
from distill_jax.methods import Method
from distill_jax.run.cache import DTYPES
from distill_jax.runtime.files import absolute
from distill_jax.runtime.options import (
    MAX_LENGTH,
    MAX_NUM,
    MAX_SEED,
    MAX_W,
    TYPES,
    OptionError,
    Rule,
    check,
    check_arguments,
    choice,
    every,
    number,
    shown,
    typed,
    whole,
    within,
)
from distill_jax.runtime.registry import suggestion
from distill_jax.runtime.text import short
from distill_jax.runtime.trees import flat
from distill_jax.training.averages import SIGMA_RELS
from distill_jax.training.update import optimizer

MAX_BATCH = 2**20
ITERATIONS = whole(1, high=10**9)
# Rules for the keys of a config; those of its data, model and schedule are rules of their entries.
RULES = {
    "seed": whole(0, high=MAX_SEED),
    "batch_size": whole(1, high=MAX_BATCH),
    "microbatches": whole(1, high=MAX_BATCH),
    "updates_per_call": whole(1, high=10_000),
    **dict.fromkeys(("log_every", "save_every"), ITERATIONS),
    "keep": whole(1, high=10_000),
    "keep_every": whole(0, high=10**9),
    "frozen_dtype": choice(("float32", "bfloat16")),
    "matmul_precision": choice(
        ("default", "high", "highest", "bfloat16", "tensorfloat32", "float32")
    ),
    "allow": typed(tuple[str, ...]),
    "published": choice(("", *PUBLISHED)),
}
RULES_OF_STAGES = {
    "new": typed(tuple[str, ...]),
    "steps": ITERATIONS,
    "learning_rate": number(0, 10),
    "warmup": whole(0, high=10**9),
    "decay_to": number(0, 1),
    "weight_decay": number(0, 10),
    "ema_decay": number(0, 1, without=(1,)),
    "ema_ramp": number(0, 1),
    "posthoc": SIGMA_RELS,
    "snapshot_every": whole(0, high=10**9),
    "snapshot_dtype": choice(("float32", "bfloat16")),
    "batch_size": whole(0, high=MAX_BATCH),
    "lora": whole(0, high=4096),
}
RULES_OF_EVALUATE = {
    "num_samples": whole(2, high=1_000_000),
    "w": every(number(0, MAX_W), 100, 1)._replace(
        expected=f"at least one w, each from 0 to {MAX_W:g}"
    ),
    "features": NAMES,
    "every": whole(0, high=10**9),
    "few": whole(10, high=MAX_NUM),
    "keep_best": typed(str),
    "ancestral": every(number(0, 1))._replace(expected="at most 100 variances from 0 to 1"),
}
RULES_OF_CACHE = {"path": typed(str), "dtype": choice(DTYPES)}
PLACES = (".path", ".teacher", ".init", ".base", ".onto")  # Keys of files, directories and stages.
MAX_DEPTH = 12  # Of dicts and tuples in each other.
KEY = Rule(
    lambda v: 0 < len(v) <= 200 and _is_text(v),
    "a string of at most 200 characters",
)
LEAF = Rule(
    lambda v: v is None or isinstance(v, (bool, float)) or TYPES[int].allows(v) or _is_text(v),
    f"plain data: numbers below 2^63, strings of at most {MAX_LENGTH:,} characters and no newline, "
    "True, False, None, and dicts and tuples of these",
)


def _is_text(value: Any) -> bool:
    """Returns whether a value is a string without newlines and terminal escapes."""
    return TYPES[str].holds(value) and not re.search(r"[\x00-\x1f\x7f]", value)


AXIS = Rule(lambda value: value == -1 or whole(1, high=2**20).holds(value), "-1 or a number from 1")


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns a line for every key whose values differ between two flat configs, old first."""
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return [f"{key}: {old.get(key)} there, {new.get(key)} now" for key in keys]


def check_values(config: ConfigDict) -> None:
    """Raises ValueError for keys that are not strings, and for values as `check_plain`."""
    try:
        tree = config.to_dict()
    except TypeError as error:  # A ConfigDict sorts its keys.
        raise ValueError(f"a key of the config is no string: {error}") from error
    check_plain(tree)


def check_plain(value: Any, path: str = "config", depth: int = 0) -> None:
    """Raises OptionError for a value that is no plain data, as in JSON, or is out of all bounds."""
    if isinstance(value, Mapping) and depth < MAX_DEPTH:
        for key, part in value.items():
            check(f"a key of {path}", key, KEY)
            check_plain(part, f"{path}.{key}", depth + 1)
    elif isinstance(value, (tuple, list)) and len(value) <= MAX_LENGTH and depth < MAX_DEPTH:
        for part in value:
            check_plain(part, path, depth + 1)
    else:
        check(path, value, LEAF)


def check_keys(config: ConfigDict, known: ConfigDict | Mapping[str, Any], path: str) -> None:
    """Raises KeyError for a key that `known` lacks, and ValueError for a value of another type."""
    for key, value in config.items():
        if key not in known:
            raise KeyError(
                f"unknown key {path}.{key}; known: {', '.join(known)}{suggestion(key, known)}"
            )
        kind = type(known[key])
        check(f"{path}.{key}", value, TYPES[dict if kind is ConfigDict else kind])
        if isinstance(known[key], ConfigDict) and known[key] and "name" not in known[key]:
            check_keys(value, known[key], f"{path}.{key}")
            check_complete(value, known[key], f"{path}.{key}")


def check_complete(config: ConfigDict, known: ConfigDict | Mapping[str, Any], path: str) -> None:
    """Raises KeyError for a key of `known` that the config lacks."""
    for key in known:
        if key not in config:
            raise KeyError(f"{path}.{key} is missing; the default is {shown(known[key])}")


def check_rules(config: ConfigDict, path: str, rules: Mapping[str, Rule]) -> None:
    """Raises OptionError for the first key whose value breaks its rule."""
    for key, rule in rules.items():
        if key in config:
            check(f"{path}.{key}", config[key], rule)


def check_config(config: ConfigDict) -> None:
    """Raises ValueError for invalid values of a config outside its stages."""
    check_rules(config, "config", RULES)
    check_rules(config.evaluate, "config.evaluate", RULES_OF_EVALUATE)
    check_rules(config.cache, "config.cache", RULES_OF_CACHE)
    check_rules(config.mesh, "config.mesh", dict.fromkeys(config.mesh, AXIS))
    with within("config.optimizer"):
        check_arguments(optimizer, config.optimizer.to_dict())
    intervals = {key: config[key] for key in ("log_every", "save_every")}
    for key, value in {**intervals, "evaluate.every": config.evaluate.every}.items():
        if value % config.updates_per_call:
            raise ValueError(
                f"config.{key} is {value}; expected a multiple of config.updates_per_call, "
                f"{config.updates_per_call}: a run logs, measures, saves and stops between calls"
            )
    if config.evaluate.keep_best and not config.evaluate.every:
        raise OptionError(
            "config.evaluate.keep_best",
            f"is {shown(config.evaluate.keep_best)}, and config.evaluate.every 0: nothing is "
            "measured in training; set config.evaluate.every to a number of iterations",
        )


def check_places(config: ConfigDict) -> None:
    """Raises ValueError if several files or directories that a config names are missing.

    A single one is left to its reader, which knows what it should be.
    """
    missing = [
        f"{key} {short(value)}"
        for key, value in flat(config.to_dict()).items()
        if key.endswith(PLACES) and isinstance(value, str) and not re.search(r"://|[{*]", value)
        if (key.endswith(".path") and value) or "/" in value
        if key != "config.cache.path" and not absolute(value).exists()
    ]
    if len(missing) > 1:
        raise ValueError(
            f"{', '.join(missing)}: nothing is there. The text at the top of the config's file "
            "says what belongs there. Some configs have a size for plans without them, FILE.py:plan"
        )


def check_stage(spec: Any, name: str, known: Mapping[str, Any], optimizers: ConfigDict) -> None:
    """Raises KeyError or ValueError for invalid keys and values of an entry of config.stages.

    Args:
      spec: the entry.
      name: its key, such as s00_teacher.
      known: all keys of a stage, with their defaults.
      optimizers: all keys of an optimizer.
    """
    path = f"config.stages.{name}"
    check(path, spec, TYPES[dict])
    check_keys(spec, known, path)
    check_complete(spec, known, path)
    check_rules(spec, path, RULES_OF_STAGES)
    check_keys(spec.optimizer, optimizers, f"{path}.optimizer")
    with within(f"{path}.optimizer"):
        check_arguments(optimizer, spec.optimizer.to_dict())
    if spec.name != (own := name.partition("_")[2]):
        raise OptionError(f"{path}.name", f"is {spec.name!r}; expected {own!r}, as in its key")
    if not spec.learning_rate and spec.steps > 1:
        raise OptionError(
            f"{path}.learning_rate",
            f"is 0, and steps {spec.steps}: nothing trains; expected a number above 0, or 1 step",
        )


def check_augmented(method: Method, model: Mapping[str, Any], data: DataSpec) -> None:
    """Raises OptionError for augmentation of latents, or for a network that is not told of it."""
    if method.augment and not data.bounded:
        raise OptionError(
            "augment", f"is {method.augment:g}, and the data are no pixels; expected 0"
        )
    if method.augment and not model.get("augment"):
        raise OptionError(
            "augment",
            f"is {method.augment:g}, and network {model['name']!r} takes no labels of augmented "
            "images, which it would draw; take song_unet with augment=True",
        )


def check_microbatches(size: int, parts: int, ways: int) -> None:
    """Raises ValueError unless microbatches times devices divide a batch of `size`."""
    if size % (parts * ways):
        raise ValueError(
            f"batch_size {size} is not divisible by microbatches x data x fsdp = {parts} x {ways}; "
            f"choose a multiple of {parts * ways}, or fewer microbatches"
        )
