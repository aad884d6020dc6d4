"""The record of a run, finished or not, as its workdir has it; nothing in the workdir is changed.

The files may be damaged or come from anywhere: each raises one ValueError with its name.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from distill_jax.evaluation.base import ROW, Row
from distill_jax.evaluation.published import INCEPTION, PUBLISHED, TRAIN, Number, Protocol
from distill_jax.methods import METHODS
from distill_jax.runtime.files import read_bytes, read_json
from distill_jax.runtime.options import Rule, choice, every, number, optional, whole
from distill_jax.sampling.fields import NAME, RECORD, RULES, TEXT, check_fields
from distill_jax.storage import checkpoint
from distill_jax.storage.checksums import is_intact

MAX_LINES = 2**28  # Bytes of scalars.jsonl or environment.jsonl.
INSIDE = re.compile(r"\.\./\.\./(\w+)/final")  # A reference to another stage of the workdir.
NUMBER = number(0, 1e12)
RULES_OF_CONFIG: dict[str, Any] = {
    "published": optional(choice(("", *PUBLISHED))),
    "stages": Rule(lambda value: isinstance(value, dict) and bool(value), "an object of stages"),
}
RULES_OF_STAGE: dict[str, Any] = {
    "steps": whole(0),
    "method": {"name": NAME},
    "teacher": TEXT,
    "init": optional(TEXT),
}
RULES_OF_REPORT: dict[str, Any] = {
    "name": NAME,
    "made_of": {"num_samples": whole(1), "networks": RECORD},
    "rows": every(Rule(lambda row: _is_row(row), "rows of a report"), 100_000),
}
RULES_OF_REFERENCE: dict[str, Any] = {
    "dataset": NAME,
    "images": whole(1),
    "weights": optional(TEXT),
}
RULES_OF_LINE: dict[str, Any] = {
    "step": whole(0),
    "updates_per_second": NUMBER,
    "cpu_seconds": optional(NUMBER),
}


class Stage(NamedTuple):
    """A stage of a run.

    Attributes:
      name: its name in the config, with its number: s00_teacher.
      method: name of its method.
      teaches: whether it trains without a teacher.
      parents: stages of the run that it began from.
      outside: whether it began from a network outside the run.
      planned: its iterations in the config.
      done: its iterations so far.
      hours: hours of training so far, with compilation; None if they are not recorded.
      cpu_seconds: CPU-seconds of all of the first process's cores in this time.
      finished: whether it has a final/.
      fingerprint: fingerprint of the weights in final/.
    """

    name: str
    method: str
    teaches: bool
    parents: tuple[str, ...]
    outside: bool
    planned: int
    done: int = 0
    hours: float | None = None
    cpu_seconds: float | None = None
    finished: bool = False
    fingerprint: int | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """The record of a run, or of a config that was not run.

    Attributes:
      name: the workdir's name, or the config's.
      published: entry of PUBLISHED that its config names, or "".
      stages: its stages by name.
      device: its devices, in words; "" if nothing ran.
      rows: rows of its report about the weights that the stages have now.
      protocol: protocol of the distance in the rows; None without a report.
      options: its config, as plain data.
    """

    name: str
    published: str
    stages: Mapping[str, Stage]
    device: str = ""
    rows: Sequence[Row] = ()
    protocol: Protocol | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def number(self, row: Row) -> Number:
        """Returns the distance of a row."""
        assert self.protocol is not None
        return Number(row[self.protocol.metric], self.protocol)

    @functools.cached_property
    def references(self) -> dict[float, Row]:
        """Rows of the teacher at its own, the largest, number of steps, by w."""
        rows = (row for row in self.rows if row["sampler"] == "teacher")
        return {row["w"]: row for row in sorted(rows, key=lambda row: row["num_steps"])}

    @functools.cached_property
    def imported(self) -> str | None:
        """Name of the teacher from outside the run; None if a stage of the run is the teacher."""
        stages = self.stages.values()
        if any(stage.teaches for stage in stages) or not any(stage.outside for stage in stages):
            return None
        rows = (row["stage"] for row in self.rows if row["sampler"] == "teacher")
        return next((name for name in rows if name not in self.stages), "teacher")

    def lineage(self, name: str) -> list[Stage]:
        """Returns the stage and all stages that it began from, the first one first."""
        found: dict[str, Stage] = {}
        todo = [name]
        while todo:
            stage = self.stages.get(todo.pop())
            if stage is not None and stage.name not in found:
                found[stage.name] = stage
                todo.extend(stage.parents)
        return [found[each] for each in sorted(found)]


def of_config(content: Mapping[str, Any], name: str) -> Record:
    """Returns the record of a config that was not run.

    Args:
      content: the config as plain data.
      name: its name, for the record and messages.

    Raises:
      ValueError: for a config without stages, or with values of other types.
    """
    check_fields(content, RULES_OF_CONFIG, name)
    stages: dict[str, Stage] = {}
    for key, entry in sorted(content["stages"].items()):
        check_fields({"name": key, "entry": entry}, {"name": NAME, "entry": RULES_OF_STAGE}, name)
        stages[key] = _planned(key, entry, stages)
    return Record(name, content.get("published") or "", stages, options=content)


def _planned(key: str, entry: Mapping[str, Any], before: Mapping[str, Stage]) -> Stage:
    """Returns a stage of a config; its teacher is the stage of that name, or the previous one."""
    method, names = entry["method"]["name"], {each.partition("_")[2]: each for each in before}
    needs = getattr(METHODS.get(method), "needs_teacher", bool(before))
    wanted = [entry["teacher"]] if entry["teacher"] else list(names)[-1:] if needs else []
    wanted += [entry["init"]] if entry.get("init") else []
    inside = tuple(names[each] for each in wanted if each in names)
    return Stage(key, method, not needs, inside, len(inside) < len(wanted), entry["steps"])


def of_workdir(workdir: epath.Path) -> Record:
    """Returns the record of a run.

    Raises:
      FileNotFoundError: if the directory holds no run.
      ValueError: for a damaged file, and for one of another kind.
    """
    record, report = trained(workdir), workdir / "report.json"
    return measured(record, read_json(report), str(report)) if report.exists() else record


def trained(workdir: epath.Path) -> Record:
    """Returns the record of a run without its report; raises as `of_workdir`."""
    place = workdir / "config.json"
    if not place.is_file():
        raise FileNotFoundError(
            f"{workdir} has no config.json; expected the workdir of a run, or a config FILE.py"
        )
    planned = of_config(read_json(place), str(place))
    stages = {name: _trained(workdir / name, stage) for name, stage in planned.stages.items()}
    starts = lines(workdir / "environment.jsonl", {"devices": NAME})
    devices = ", ".join(dict.fromkeys(line["devices"] for line in starts))
    return dataclasses.replace(
        planned, name=workdir.name, stages=stages, device=devices or "not recorded"
    )


def _trained(directory: epath.Path, stage: Stage) -> Stage:
    """Returns a stage with what its directory records."""
    found, hours, done = lines(directory / "scalars.jsonl", RULES_OF_LINE), 0.0, 0
    for line in sorted(found, key=lambda line: line["step"]):
        hours += max(0, line["step"] - done) / max(line["updates_per_second"], 1e-12) / 3600
        done = line["step"]
    cpu = [line["cpu_seconds"] for line in found if line.get("cpu_seconds") is not None]
    stage = stage._replace(
        done=done, hours=hours if found else None, cpu_seconds=sum(cpu) if cpu else None
    )
    final = directory / "final"
    if not (final / "manifest.json").exists():
        return stage
    content = checkpoint.read_manifest(final)
    check_fields(content, RULES, str(final / "manifest.json"))
    lineage = content["lineage"]
    paths = [path for path in (lineage.get("parent"), lineage.get("init")) if path]
    inside = tuple(found[1] for found in map(INSIDE.fullmatch, paths) if found)
    return stage._replace(
        parents=inside,
        outside=len(inside) < len(paths),
        finished=True,
        fingerprint=checkpoint.fingerprint(final),
        done=lineage.get("updates") or done,
        teaches=not content["distilled"],
    )


def measured(record: Record, content: Mapping[str, Any], place: str) -> Record:
    """Returns a record with the rows of a report and the protocol of its distance.

    Rows about other weights of a stage than it has now are left out.

    Args:
      record: record of the run.
      content: content of its report.json.
      place: name of the report in messages.

    Raises:
      ValueError: for a damaged report, and for a content of another kind.
    """
    if not is_intact(content):
        raise ValueError(f"{place} is damaged: its checksum is wrong; start the run again")
    check_fields(content, RULES_OF_REPORT, place)
    name, reference, dataset = content["name"], "reference not recorded", "data not recorded"
    if "reference" in content:
        check_fields(content, {"reference": RULES_OF_REFERENCE}, place)
        dataset = content["reference"]["dataset"]
        reference = TRAIN.format(content["reference"]["images"])
        weights = content["reference"].get("weights") or "not recorded"
        if name == "FID" and weights != INCEPTION:  # Other weights have other distances.
            reference += f", weights {weights:.12}"
    if not all(isinstance(row.get(name), float) for row in content["rows"]):
        raise ValueError(f"{place} has a row without {name}; start the run again")
    made_of, prints = content["made_of"], {n: s.fingerprint for n, s in record.stages.items()}
    changed = {stage for stage, found in made_of["networks"].items() if found != prints.get(stage)}
    rows = [row for row in content["rows"] if row["stage"] not in changed]
    protocol = Protocol(name, dataset, made_of["num_samples"], reference)
    return dataclasses.replace(record, rows=rows, protocol=protocol)


def _is_row(row: Any) -> bool:
    """Returns whether an entry of a report's rows has what every row has."""
    if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in ROW):
        return False
    return NAME.holds(row["sampler"]) and NAME.holds(row["stage"])


def lines(path: epath.Path, rules: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the objects in a JSONL file, without a last line that a kill has cut.

    Args:
      path: path of the file; [] if there is none.
      rules: rules of the fields of every line, see fields.check_fields.

    Raises:
      ValueError: for a line that is no JSON or breaks a rule.
    """
    if not path.exists():
        return []
    *whole_lines, _ = read_bytes(path, MAX_LINES).split(b"\n")
    found = []
    for n, line in enumerate(whole_lines, start=1):
        try:
            content = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path}, line {n}, is no readable JSON; the log is damaged"
            ) from error
        check_fields({"line": content}, {"line": rules}, f"{path}, line {n}")
        found.append(content)
    return found
