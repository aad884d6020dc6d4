"""Mutated configs, written from signatures and config keys.

A new option, key, network or method is mutated without an edit here. `python -m tests.fuzz COUNT
[SEED]` prints what becomes of COUNT mutated configs: the accepted ones, and those that are wrong.
"""

import contextlib
import copy
import inspect
import math
import pathlib
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from distill_jax.config import base, pipeline, stage
from distill_jax.data import DATASETS
from distill_jax.data.masks import MASKS
from distill_jax.diffusion.schedule import SCHEDULES
from distill_jax.methods import METHODS
from distill_jax.models import NETWORKS
from distill_jax.run import plan
from distill_jax.runtime import logging
from distill_jax.runtime.app import is_message, message
from distill_jax.runtime.config_file import load_file
from distill_jax.runtime.options import rules_of
from distill_jax.sampling.codecs import CODECS
from distill_jax.sampling.prompts import CONDITIONERS
from tests.toys import ROOT

TABLES = {
    "data": DATASETS,
    "model": NETWORKS,
    "schedule": SCHEDULES,
    "codec": CODECS,
    "conditioner": CONDITIONERS,
    "masks": MASKS,
    "method": METHODS,
}
# Options of the smallest networks and datasets, for those that take them.
SMALL = {
    **dict.fromkeys(("blocks", "heads", "expand"), 1),
    **dict.fromkeys(("width", "embedding", "size"), 8),
    "patch": 4,
    "channels": 32,
    "count": 16,
    "multipliers": (1,),
    "attention": (),
}
MISSING = object()  # Stands for the removal of a key.
VALUES = (
    *(-1, 0, 1, 3, 10_000, 2**31, 2**32, 10**12, 10**5000),
    *(2.5, 0.5, -0.5, 1e-320, 1e30, math.nan, math.inf, -math.inf, 1j),
    *(None, True, False, MISSING, b"bytes", object),
    *("", "bogus", "3", "nowhere:Name", "a" * 100_000, "\x1b[31m\nb", "../..", "/etc/passwd"),
    *((), (1, 2), (2, 1), ("a", "b"), (math.nan, 1.0), (-1.0, -2.0), (None,), (0.5,) * 20_000),
    *([], [1, 2], [[1], [2]], {}, {"a": 1}, {"name": "bogus"}, {"name": None}, {1: 2}),
)
SECONDS = 20.0  # Of CPU time for one case; a plan of the largest preset takes 3.
LENGTH = 2000  # Of a message, in characters.


class Case(NamedTuple):
    """A config with other values at some keys."""

    config: ConfigDict
    changes: tuple[tuple[tuple[str, ...], Any], ...]

    def make(self) -> ConfigDict:
        """Returns the mutated config."""
        tree = self.config.to_dict()
        for path, value in self.changes:
            node: Any = tree
            for key in path[:-1]:
                node = node.get(key, {}) if isinstance(node, dict) else {}
            if isinstance(node, dict) and value is MISSING:
                node.pop(path[-1], None)
            elif isinstance(node, dict):
                node[path[-1]] = copy.deepcopy(value)
        return ConfigDict(tree, type_safe=False)

    def __str__(self) -> str:
        return ", ".join(f"{'.'.join(path)} = {_short(value)}" for path, value in self.changes)


def _short(value: Any) -> str:
    if value is MISSING:
        return "(removed)"
    with contextlib.suppress(ValueError):
        return repr(value)[:60]
    return "10**5000"


# Options of some entries beside those of SMALL, and instead of them.
OWN = {
    "tfds": {"dataset": "cifar10", "num_labels": 10},
    "captioned_tfds": {"dataset": "coco_captions", "caption": "captions/text"},
    "shapes": {"count": 64, "tests": 64},
}
CAPTIONED = ("captioned_folder", "captioned_tfds", "prompts", "shapes")
ALONE = {
    "patch_pca": {"patch": 2},
    "autoencoder": {"widths": (4, 4), "blocks": 1, "groups": 2},
    "flux": {"heads": 1, "head_dim": 8, "axes": (2, 2, 4), "blocks": 1, "singles": 1},
    "mmdit": {"heads": 1, "head_dim": 8, "blocks": 2, "dual": 1},
    "sd_unet": {"widths": (8,), "blocks": 1, "transformers": (), "heads": (1,), "groups": 4},
    "taesd": {"encoder": "cdc", "decoder": "cdc", "channels": 2, "width": 4},
    "words": {"width": 8, "heads": 1, "updates": 1},
    "pretrained": {"model": '{"model_type": "bert"}'},
}


def bases(folder: str) -> Iterator[ConfigDict]:
    """Yields the presets at their smoke size, and the configs of `small`.

    Args:
      folder: folder of images, for the dataset of that name.
    """
    presets = [
        load_file(path).get_config("smoke") for path in sorted((ROOT / "configs").glob("*.py"))
    ]
    yield from sorted(presets, key=lambda config: len(config.stages))
    yield from small(folder)


def small(folder: str) -> Iterator[ConfigDict]:
    """Yields a config of one stage for every entry of a table other than the methods."""
    files = {"path": folder}
    paths = {"folder": files, "captioned_folder": files}
    paths["prompts"] = {"path": f"{folder}/0.txt", "size": 8}
    for key, table in TABLES.items():
        for name, entry in table.items() if key != "method" else ():
            config, rules = smallest(), rules_of(entry)
            if name == "mixture":
                config.data = {"name": "mixture"}
            if key == "conditioner":
                config.data = {"name": "shapes", **OWN["shapes"]}
            if key == "conditioner" or name in CAPTIONED:
                config.conditioner = {"name": "words", **ALONE["words"]}
                config.model = {"name": "dit", "patch": 8, "width": 8, "blocks": 1, "heads": 1}
            if key == "masks":
                config.model = {"name": "sd_unet", **ALONE["sd_unet"]}
            options = {k: v for k, v in SMALL.items() if k in rules and rules[k].allows(v)}
            options = ALONE.get(name, {**options, **OWN.get(name, {})})
            config[key] = {"name": name, **options, **paths.get(name, {})}
            yield config


def smallest() -> ConfigDict:
    """Returns a config of one stage with a tiny network."""
    config = base()
    config.data = {"name": "noise", "size": 8, "count": 16}
    config.model = {"name": "mlp", "width": 8, "blocks": 1}
    config.stages = pipeline(stage("teacher", "diffusion", steps=8, learning_rate=1e-3))
    return config


def keys(config: ConfigDict) -> list[tuple[str, ...]]:
    """Returns the paths of all keys of a config, and of the options that it leaves at defaults."""
    found: dict[tuple[str, ...], None] = {}

    def walk(node: ConfigDict, path: tuple[str, ...]) -> None:
        for key, value in node.items():
            found[(*path, key)] = None
            if isinstance(value, ConfigDict):
                walk(value, (*path, key))
        table = TABLES.get(path[-1] if path else "", {})
        entry = table.get(node.get("name")) if path else None
        for option in inspect.signature(entry).parameters if entry else ():
            if option != "spec":
                found[(*path, option)] = None

    walk(config, ())
    return list(found)


def cases(folder: str) -> list[Case]:
    """Returns every key of all configs with every nasty value, each kind of key once.

    A kind is the path without the stage's name, and the entries that the config names there.
    """
    seen, found = set(), []
    for config in bases(folder):
        for path in keys(config):
            whole, kind = config, ["top", *path]
            if len(path) > 2 and path[0] == "stages":
                kind = ["stage", *path[2:]]
                if path[2] == "method":
                    kind[1:1] = [config.stages[path[1]].method.name]
                if tuple(kind) not in seen:
                    whole = _until(config, path[1])
            elif path[0] in TABLES:
                kind[1:1] = [str(config[path[0]].get("name"))]
            if tuple(kind) in seen:
                continue
            seen.add(tuple(kind))
            found += [Case(whole, ((path, value),)) for value in VALUES]
    return found


def _until(config: ConfigDict, last: str) -> ConfigDict:
    """Returns the config without the stages after `last`, which do not matter for it."""
    config = config.copy_and_resolve_references()
    for name in [name for name in config.stages if name > last]:
        del config.stages[name]
    return config


def pairs(single: list[Case], count: int, rng: random.Random) -> list[Case]:
    """Returns cases with two or three changed keys of the same config."""
    found = []
    for _ in range(count):
        case = rng.choice(single)
        others = rng.sample(keys(case.config), rng.choice((1, 2)))
        more = tuple((path, rng.choice(VALUES)) for path in others)
        found.append(Case(case.config, (*case.changes, *more)))
    return found


class Outcome(NamedTuple):
    """What became of a case: "accepted", "message", or what is wrong, with its text."""

    kind: str
    text: str
    seconds: float


class HangError(Exception):
    """Raised in a case that takes too long."""


def outcome(case: Case) -> Outcome:
    """Plans the mutated config, and prints the plan."""

    def stop(*_: Any) -> None:
        raise HangError

    before, began = signal.signal(signal.SIGVTALRM, stop), time.process_time()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        config = case.make()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind, text = "accepted", plan.show(plan.make(config, "/nonexistent/fuzz"))
    except HangError:
        kind, text = "hang", ""
    except Exception as error:
        mistake = isinstance(error, (ValueError, KeyError, OSError)) and is_message(error)
        kind, text = _judged(error) if mistake else ("traceback", traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    if grown > 2**20:  # In KiB.
        kind, text = "memory", f"{grown / 2**20:.1f} GiB: {text}"
    return Outcome(kind, text, time.process_time() - began)


def _judged(error: Exception) -> tuple[str, str]:
    """Returns "message" and its text, or what is wrong with it."""
    text = message(error)
    if "\n" in text or "\x1b" in text or len(text) > LENGTH:
        return f"message of {len(text)} characters in {text.count(chr(10)) + 1} lines", text
    return "message", text


def main(count: int, seed: int = 0) -> int:
    """Prints the outcome of `count` cases, and returns how many of them are wrong."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        for i in range(30):
            Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(f"{folder}/{i}.png")
            pathlib.Path(folder, f"{i}.txt").write_text(f"picture {i}")
        single = cases(folder)
        rng.shuffle(single)
        chosen = single[: count * 4 // 5]
        chosen += pairs(single, count - len(chosen), rng)
        found = [(str(case), outcome(case)) for case in chosen]
    wrong = [(case, each) for case, each in found if each.kind not in ("accepted", "message")]
    accepted = sorted(case for case, each in found if each.kind == "accepted")
    for line in accepted:
        logging.say(f"accepted: {line}")
    for seconds, case in sorted((each.seconds, case) for case, each in found)[-5:]:
        logging.say(f"{seconds:.1f} s: {case}")
    for case, each in wrong:
        logging.say(f"{each.kind.upper()}: {case}: {each.text[-1500:]}")
    logging.say(
        f"{count} of {len(single)} single changes and pairs: {len(accepted)} plans, {len(wrong)} "
        f"wrong, {sum(each.seconds for _, each in found):.0f} CPU-seconds"
    )
    return len(wrong)


if __name__ == "__main__":
    sys.exit(min(main(*map(int, sys.argv[1:])), 1))
