"""Runs the configs of a sweep one after the other, and writes a table of their results.

python -m distill_jax.sweep configs/sweeps/digits_heads.py
python -m distill_jax.sweep configs/sweeps/digits_heads.py:smoke --workdir=/tmp/heads

A sweep file has a function get_sweep(size) -> {name: config}. Every run has its own workdir inside
the sweep's, and adds its row to table.md when it ends. The same command resumes a stopped sweep.
Each row stores the config of its run: a run whose config has changed is refused, and a run that the
file no longer has leaves the table. In a stage's `teacher`, "{sweep}" is the sweep's workdir, so
that runs can share a teacher.
"""

import json
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from distill_jax.evaluation import report
from distill_jax.run import pipeline, plan
from distill_jax.run.caching import keep_programs
from distill_jax.run.claim import kept
from distill_jax.run.lock import hold
from distill_jax.run.validation import changes
from distill_jax.runtime import logging
from distill_jax.runtime.app import run_app
from distill_jax.runtime.config_file import load_file
from distill_jax.runtime.files import (
    absolute,
    append,
    default_workdir,
    read_json,
    replace,
)
from distill_jax.runtime.preemption import StopFlag
from distill_jax.runtime.trees import flat
from distill_jax.training.loop import DivergedError, StoppedError

Row = dict[str, Any]


def define_flags() -> None:
    """Defines the flag of the command; not at import, because commands share flag names."""
    flags.DEFINE_string("workdir", None, "Output directory, by default runs/<sweep>.")


def load_sweep(path: str) -> dict[str, ConfigDict]:
    """Returns the configs of a sweep, FILE.py or FILE.py:size, by name.

    Raises:
      ValueError: when the file does not exist, is not a sweep, or does not have that size.
    """
    file, _, size = path.partition(":")
    if not os.path.isfile(file):
        raise ValueError(f"{file} does not exist; expected a sweep such as configs/sweeps/NAME.py")
    if not file.endswith(".py"):
        raise ValueError(f"{file} is no .py file; expected a sweep such as configs/sweeps/NAME.py")
    module = load_file(file)
    if not hasattr(module, "get_sweep"):
        raise ValueError(f"{file} has no get_sweep(size): it is a config, for distill_jax.main")
    return module.get_sweep(size or "full")


def run_sweep(
    configs: Mapping[str, ConfigDict], workdir: epath.Path, stop: Callable[[], bool]
) -> list[Row]:
    """Runs the unfinished configs, and returns the rows of all, in the order of the configs.

    Args:
      configs: configs by name; a run may use the networks of the runs before it.
      workdir: workdir of the sweep.
      stop: function that is polled between iterations and measurements.

    Raises:
      ValueError: when the config of a run that has begun or ended has changed.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "rows.jsonl"
    done = _read_rows(path)
    contents = {name: _content(config) for name, config in configs.items()}
    _refuse_changes(workdir, done, contents)
    # All runs are checked before the first one starts, except those that need another's network.
    for name, config in configs.items():
        if "{sweep}" not in str(config):
            plan.make(config, workdir / name)
    for number, (name, config) in enumerate(configs.items(), start=1):
        if name not in done:
            logging.say(f"{name} ({number} of {len(configs)})")
            row = {"run": name, **_measure(config, workdir, name, stop)}
            append(path, json.dumps({**row, "config": contents[name]}) + "\n")
            done[name] = row
        rows = [_measured(done[other]) for other in configs if other in done]
        replace(workdir / "table.md", f"{report.rows_table(rows)}\n".encode())
    return [_measured(done[name]) for name in configs]


def _read_rows(path: epath.Path) -> dict[str, Row]:
    """Returns the rows in a file by name, and removes damaged lines from the file."""
    rows = logging.read_lines(path, run=str, config=dict)
    replace(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
    return {row["run"]: row for row in rows}


def _measured(row: Row) -> Row:
    """Returns the row without its config."""
    return {key: value for key, value in row.items() if key != "config"}


def _content(config: ConfigDict) -> dict[str, Any]:
    """Returns the values of a config that affect its row, by dotted key."""
    tree = json.loads(config.copy_and_resolve_references().to_json())
    return flat({**kept(tree), "evaluate": tree["evaluate"]})


def _refuse_changes(
    workdir: epath.Path, done: Mapping[str, Row], contents: Mapping[str, dict[str, Any]]
) -> None:
    """Raises ValueError for finished runs whose configs have changed."""
    lines = []
    for name in contents.keys() & done.keys():
        found = changes(done[name]["config"], contents[name])
        lines += [f"  {name}, {line}" for line in found]
    if lines:
        raise ValueError(
            f"{workdir} has rows of other configs:\n" + "\n".join(sorted(lines)) + "\n"
            "give the changed runs other names, or choose another --workdir"
        )


def _measure(config: ConfigDict, workdir: epath.Path, name: str, stop: Callable[[], bool]) -> Row:
    """Trains one run, and returns its row: distances by sampler, steps and w, or the divergence."""
    began = time.monotonic()
    config = config.copy_and_resolve_references()
    for stage in config.stages.values():
        for option in ("teacher", "init", "init_fake", "base"):
            stage[option] = stage[option].replace("{sweep}", str(workdir))
    directory = workdir / name
    try:
        run = plan.make(config, directory)
        with hold(directory) as lock:
            pipeline.run(run, stop)
            pipeline.report(run, stop, lock)
    except ValueError as error:
        if not isinstance(error.__cause__, DivergedError):
            raise
        logging.say(f"{name}: {error}")
        return {"diverged": str(error.__cause__)}
    content = read_json(directory / "report.json")
    measured = {}
    for row in content["rows"]:
        column = f"{row['sampler']}, N = {row['num_steps']}, w = {row['w']:g}"
        measured[column] = row[content["name"]]
        if "variance" in row:
            measured[f"{column}: variance"] = row["variance"]
    return {"distance": content["name"], **measured, "seconds": time.monotonic() - began}


def main(path: str) -> int:
    """Runs a sweep, and returns the exit code: 0, or 128 + n if signal n stopped it."""
    configs = load_sweep(path)
    workdir = absolute(flags.FLAGS.workdir or default_workdir(path))
    keep_programs()
    stop = StopFlag().install()
    try:
        with hold(workdir):
            rows = run_sweep(configs, workdir, stop)
    except (StoppedError, InterruptedError, KeyboardInterrupt) as error:
        logging.say(f"{str(error) or 'stopped'}. The same command goes on from there.")
        return 128 + (stop.signal or 2)
    logging.show(report.rows_table(rows))
    logging.say(f"{workdir / 'table.md'}")
    return 0


if __name__ == "__main__":
    define_flags()
    run_app(main, "SWEEP")
