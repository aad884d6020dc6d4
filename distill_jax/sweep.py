"""Runs the configs of a sweep, one after the other, and tabulates them.

python -m distill_jax.sweep configs/sweeps/digits_heads.py
python -m distill_jax.sweep configs/sweeps/digits_heads.py:smoke --workdir=/tmp/heads

A sweep file has a function get_sweep(size) -> {name: config}. Every run is a workdir of its own
below the sweep's, and table.md gets its row as soon as it ends; the same command goes on where it
was stopped. In a stage's `teacher`, "{sweep}" stands for the sweep's workdir: runs may share one.
"""

import importlib.util
import json
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from distill_jax import evaluate, logs, pipeline, plan, report
from distill_jax.errors import friendly
from distill_jax.paths import absolute
from distill_jax.signals import StopFlag
from distill_jax.train import DivergedError, StoppedError

Row = dict[str, Any]


def load_sweep(path: str) -> dict[str, ConfigDict]:
    """The configs of FILE.py or FILE.py:size by name.

    Raises:
      ValueError: when there is no such file, or it is no sweep.
    """
    file, _, size = path.partition(":")
    if not os.path.isfile(file):
        raise ValueError(f"{file} does not exist; expected a sweep such as configs/sweeps/NAME.py")
    spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_sweep"):
        raise ValueError(f"{file} has no get_sweep(size): it is a config, for distill_jax.main")
    return module.get_sweep(size or "full")


def run_sweep(
    configs: Mapping[str, ConfigDict], workdir: epath.Path, stop: Callable[[], bool]
) -> list[Row]:
    """Runs what is not done yet; returns the rows of all.

    Args:
      configs: by name; a run may use the networks of those before it.
      workdir: of the sweep.
      stop: polled between iterations and measurements.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path, rows = workdir / "rows.jsonl", []
    if path.exists():
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    # Planned before anything is started, but for what needs another run's network.
    for name, config in configs.items():
        if "{sweep}" not in str(config):
            plan.make(config, workdir / name)
    done = {row["run"] for row in rows}
    for number, (name, config) in enumerate(configs.items(), start=1):
        if name in done:
            continue
        logs.say(f"{name} ({number} of {len(configs)})")
        rows.append({"run": name, **_measure(config, workdir, name, stop)})
        with path.open("a") as lines:
            lines.write(json.dumps(rows[-1]) + "\n")
        (workdir / "table.md").write_text(report.rows_table(rows) + "\n")
    return rows


def _measure(config: ConfigDict, workdir: epath.Path, name: str, stop: Callable[[], bool]) -> Row:
    """Trains and measures one run: its distances by sampler, steps and w, or that it diverged."""
    began = time.monotonic()
    config = config.copy_and_resolve_references()
    for stage in config.stages.values():
        stage.teacher = stage.teacher.replace("{sweep}", str(workdir))
    directory = workdir / name
    try:
        pipeline.run(plan.make(config, directory), stop)
    except ValueError as error:
        if not isinstance(error.__cause__, DivergedError):
            raise
        logs.say(f"{name}: {error}")
        return {"diverged": str(error.__cause__)}
    evaluate.write_report(directory, config.evaluate.to_dict(), stop)
    content = json.loads((directory / "report.json").read_text())
    measured = {}
    for row in content["rows"]:
        column = f"{row['sampler']}, N = {row['num_steps']}, w = {row['w']:g}"
        measured[column] = row[content["name"]]
        if "variance" in row:
            measured[f"{column}: variance"] = row["variance"]
    return {"distance": content["name"], **measured, "seconds": time.monotonic() - began}


def main(path: str) -> int:
    """The command line; returns the exit code, 128 + n when stopped by signal n."""
    configs = load_sweep(path)
    file, _, size = path.partition(":")
    default = f"runs/{pathlib.Path(file).stem}{'_' + size if size else ''}"
    workdir = absolute(flags.FLAGS.workdir or default)
    workdir.mkdir(parents=True, exist_ok=True)
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str(workdir / "compilation_cache"))
    stop = StopFlag().install()
    try:
        rows = run_sweep(configs, workdir, stop)
    except (StoppedError, InterruptedError, KeyboardInterrupt) as error:
        logs.say(f"{error or 'stopped'}. The same command goes on from there.")
        return 128 + (stop.signal or 2)
    logs.say(report.rows_table(rows))
    logs.say(f"{workdir / 'table.md'}")
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Where to write; runs/<sweep> without it.")
    friendly(main, "SWEEP")
