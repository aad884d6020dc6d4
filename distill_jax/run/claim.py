"""The config of a workdir: what a run may change when it goes on there."""

import json
from collections.abc import Container, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from distill_jax import config as configs
from distill_jax.run.cache import DTYPES
from distill_jax.run.data import absolute_paths, read_record
from distill_jax.run.validation import changes
from distill_jax.runtime import distributed, logging
from distill_jax.runtime.files import read_json, write_json
from distill_jax.runtime.trees import flat, span

# Keys of a config that may change in a resumed run: networks stay the same, up to rounding.
RESUMABLE = (
    "allow",
    "evaluate",
    "keep",
    "keep_every",
    "keep_states",
    "log_every",
    "mesh",
    "published",
    "save_every",
    "teacher",  # What it sets in other keys may not change.
    "updates_per_call",
)
# Keys of its `evaluate` that may not, where the networks are the best ones that are measured.
SELECTING = ("every", "few", "features", "keep_best", "w")


def claim(
    workdir: epath.Path, config: ConfigDict, force: bool, data: Mapping[str, Any] | None = None
) -> None:
    """Writes config.json and data.json, or checks the existing ones against config and data.

    Stages that have not begun may change, and others may be added behind the begun ones. A key that
    an older version did not know yet had the value that is its default today.

    Args:
      workdir: directory of the run.
      config: config of the run.
      force: whether both may have changed.
      data: see run.data.record; None or {} if it is unknown.

    Raises:
      ValueError: for another config or other data, with a line for each change.
    """
    path = workdir / "config.json"
    new = json.loads(config.to_json())
    there, seen = _read_config(path, force), read_record(workdir)
    if there is not None:
        begun = _begun(workdir, there, new)
        both = (flat(_of_stages(kept(tree), begun)) for tree in (_completed(there), new))
        lines = [f"  {line}" for line in changes(*both)]
        kind = "another config" if lines else "other data"
        if seen and data:  # An older version may have recorded less.
            now = {key: value for key, value in data.items() if key in seen}
            lines += [f"  {line}" for line in changes(flat(seen, "data"), flat(now, "data"))]
        if lines and not force:
            raise ValueError(
                f"{workdir} holds a run of {kind}:\n" + "\n".join(lines) + "\n"
                "choose another --workdir, or go on there with --resume=force (finished stages "
                "stay as they are)"
            )
        for line in lines:
            logging.say(f"--resume=force: changed{line}")
        if later := _later(there, new, begun):
            logging.say(f"not begun before, and of this config now: {span(later)}")
    distributed.barrier("all have read the config of the workdir")
    if distributed.first():
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(path, new)
        if data and data != seen:
            write_json(workdir / "data.json", data)


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
    values = {key: value for key, value in config.items() if key not in RESUMABLE}
    if isinstance(cache := values.pop("cache", None), dict) and cache.get("dtype") != DTYPES[0]:
        values["cache"] = {"dtype": cache.get("dtype")}
    evaluate, data = config.get("evaluate"), values.get("data")
    if isinstance(evaluate, dict) and evaluate.get("keep_best"):
        values["evaluate"] = {key: evaluate.get(key) for key in SELECTING}
    return values | {"data": data | absolute_paths(data)} if isinstance(data, dict) else values


def _completed(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the config of a workdir with the defaults of the keys that it does not have yet."""
    of_stage = configs.stage("", "", steps=1, learning_rate=1.0)
    found: dict[str, Any] = _with(tree, json.loads(configs.base().to_json()))
    stages = found.get("stages")
    if isinstance(stages, dict):
        defaults = json.loads(json.dumps(of_stage))
        found["stages"] = {name: _with(entry, defaults) for name, entry in stages.items()}
    return found


def _with(tree: Any, defaults: Mapping[str, Any]) -> Any:
    """Returns a dict with the defaults of its missing keys; what has a name is left as it is."""
    if not isinstance(tree, dict):
        return tree
    parts = {
        key: _with(tree.get(key, {}), value)
        for key, value in defaults.items()
        if isinstance(value, dict) and value and "name" not in value
    }
    return {**defaults, **tree, **parts}


def _names(tree: Mapping[str, Any]) -> list[str]:
    """Returns the names of a config's stages in their order."""
    stages = tree.get("stages")
    return sorted(stages) if isinstance(stages, dict) else []


def _begun(workdir: epath.Path, there: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns the stages up to the last one, of either config, that has a directory."""
    names = sorted({*_names(there), *_names(new)})
    last = max((i for i, name in enumerate(names) if (workdir / name).exists()), default=-1)
    return names[: last + 1]


def _of_stages(tree: dict[str, Any], names: Container[str]) -> dict[str, Any]:
    """Returns a config with these stages only."""
    if not isinstance(stages := tree.get("stages"), dict):
        return tree
    return tree | {"stages": {name: stages[name] for name in stages if name in names}}


def _later(there: Mapping[str, Any], new: Mapping[str, Any], begun: Container[str]) -> list[str]:
    """Returns the stages that have not begun, and differ between two configs."""
    old, now = ({n: tree["stages"][n] for n in _names(tree)} for tree in (there, new))
    return [name for name in now if name not in begun and old.get(name) != now[name]]
