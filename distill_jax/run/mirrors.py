"""Copies of a run's logs in Weights & Biases or MLflow; the lines in its workdir stay the record.

A mirror reads the workdir only, so it runs beside the training, after it, or again: mirror.json in
the workdir has the last iteration that each service has of each file.
"""

import hashlib
import importlib
import importlib.util
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from etils import epath

from distill_jax.run.validation import flat
from distill_jax.runtime import logging
from distill_jax.runtime.files import read_json, write_json

FILES = ("scalars", "quality")  # JSONL files of a stage.
PICTURE = "grid.png"  # Of a stage.
REPORTS = ("report.png", "report.md", "report.json")  # Of a run; its last stage gets them.
POSITIONS = "mirror.json"


class Service(ABC):
    """A service that shows runs: one run of its own for each stage, in a group for the workdir."""

    def __init__(self, project: str, workdir: epath.Path, config: Mapping[str, Any]):
        self.project, self.group, self.config = project, workdir.name, dict(config)
        self._place = str(workdir)

    def key_of(self, stage: str) -> str:
        """Returns the name of a stage's run in the service, the same whenever it is mirrored."""
        return hashlib.sha256(f"{self._place}/{stage}".encode()).hexdigest()[:16]

    @abstractmethod
    def begin(self, stage: str) -> None:
        """Opens the run of a stage, or goes on in it."""

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the numbers of an iteration."""

    @abstractmethod
    def files(self, paths: list[epath.Path]) -> None:
        """Adds pictures and other files."""

    @abstractmethod
    def end(self) -> None:
        """Closes the run of the stage."""


class Wandb(Service):
    """Weights & Biases; WANDB_MODE=offline writes to the directory wandb/ only."""

    def begin(self, stage: str) -> None:
        self._wandb = importlib.import_module("wandb")
        where = {"project": self.project, "group": self.group, "name": f"{self.group}/{stage}"}
        self._run = self._wandb.init(
            **where, id=self.key_of(stage), resume="allow", config=self.config
        )
        self._run.define_metric("*", step_metric="iteration")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"iteration": step, **values})

    def files(self, paths: list[epath.Path]) -> None:
        pictures = {p.stem: self._wandb.Image(str(p)) for p in paths if p.suffix == ".png"}
        if pictures:
            self._run.log(pictures)
        for path in paths:
            self._run.save(str(path), base_path=str(path.parent), policy="now")

    def end(self) -> None:
        self._run.finish()


class Mlflow(Service):
    """MLflow; MLFLOW_TRACKING_URI says where."""

    def begin(self, stage: str) -> None:
        self._client = importlib.import_module("mlflow").MlflowClient()
        found = self._client.get_experiment_by_name(self.project)
        experiment = found.experiment_id if found else self._client.create_experiment(self.project)
        key = self.key_of(stage)
        query = f"tags.distill_jax = '{key}'"
        runs = self._client.search_runs([experiment], filter_string=query, max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            return
        tags = {"distill_jax": key, "group": self.group}
        made = self._client.create_run(experiment, run_name=f"{self.group}/{stage}", tags=tags)
        self._run = made.info.run_id
        self._client.log_dict(self._run, self.config, "config.json")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        metric, now = importlib.import_module("mlflow.entities").Metric, int(1000 * time.time())
        metrics = [metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._run, metrics=metrics)  # One request.

    def files(self, paths: list[epath.Path]) -> None:
        for path in paths:
            self._client.log_artifact(self._run, str(path))

    def end(self) -> None:
        self._client.set_terminated(self._run)


SERVICES: dict[str, type[Service]] = {"wandb": Wandb, "mlflow": Mlflow}


def mirror(workdir: epath.Path, name: str, project: str) -> int:
    """Sends what a service does not have yet of a run; returns the number of new lines.

    Args:
      workdir: workdir of a run, which may still train.
      name: name in SERVICES.
      project: project (W&B) or experiment (MLflow), which is made if there is none.

    Raises:
      ValueError: without the service's library, and for a directory that is no workdir.
    """
    if not (workdir / "config.json").exists():
        raise ValueError(f"{workdir} has no config.json; expected the workdir of a run")
    if importlib.util.find_spec(name) is None:
        raise ValueError(f'--to={name} needs its library; run pip install -e ".[{name}]"')
    service = SERVICES[name](project, workdir, flat(read_json(workdir / "config.json")))
    place, sent = workdir / POSITIONS, 0
    known = read_json(place) if place.exists() else {}
    stages = sorted(path.parent for path in workdir.glob("s[0-9]*_*/scalars.jsonl"))
    for stage in stages:
        positions = known.setdefault(name, {}).setdefault(stage.name, {})
        lines = _lines(stage, positions)
        last = [workdir / each for each in REPORTS] if stage == stages[-1] else []
        found = {p: p.stat().mtime for p in (stage / PICTURE, *last) if p.exists()}
        ready = [path for path, when in found.items() if positions.get(path.name) != when]
        if not (lines or ready):
            continue
        service.begin(stage.name)
        try:
            for step, file, values in lines:
                service.log(step, values)
                positions[file] = step
            service.files(ready)
            positions.update({path.name: found[path] for path in ready})
        finally:  # So that Ctrl-C sends no line twice.
            write_json(place, known)
            service.end()
        sent += len(lines)
        logging.say(f"{stage.name}: {len(lines)} lines and {len(ready)} files to {name}")
    return sent


def _lines(
    stage: epath.Path, positions: Mapping[str, Any]
) -> list[tuple[int, str, dict[str, float]]]:
    """Returns the iteration, file and finite numbers of each line that is new, in their order."""
    found = []
    for file in FILES:
        for line in logging.read_lines(stage / f"{file}.jsonl", step=int):
            if line["step"] > positions.get(file, 0):
                start = "" if file == "scalars" else f"{file}/"
                numbers = {
                    start + key.lstrip("."): float(value)
                    for key, value in flat(line, "").items()
                    if key != ".step" and _is_number(value)
                }
                found.append((line["step"], file, numbers))
    return sorted(found, key=lambda each: each[0])


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
