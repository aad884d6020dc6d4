"""Everything that a report shows of a finished run."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from distill_jax.evaluation import gallery, history, records
from distill_jax.runtime import logging
from distill_jax.runtime.options import Rule, every, is_number, number, optional
from distill_jax.sampling.fields import NAME, RECORD, TEXT, check_fields

RULES_OF_START: dict[str, Any] = {
    "devices": NAME,
    "commit": optional(TEXT),
    "python": optional(TEXT),
    "versions": optional(RECORD),
}
FLOOR = Rule(lambda value: _is_floor(value), "distances between real images")
RULES_OF_CONTENT: dict[str, Any] = {
    "definition": optional(TEXT),
    "floor": FLOOR,
    "real_recall": number(0, 1),
    "real_accuracy": optional(number(0, 1)),
    "rotation_accuracy": optional(number(0, 1)),
    "real_retrieval": optional(RECORD),
    "columns": optional(every(TEXT, gallery.COLUMNS)),
    "diversity": optional(Rule(lambda value: _is_diversity(value), "measures of real images")),
}
# Packages whose versions are shown; those of all others are in environment.jsonl.
PACKAGES = ("distill_jax", "jax", "jaxlib", "flax", "optax", "numpy", "pillow", "scikit-learn")


class Finished(NamedTuple):
    """A finished run.

    Attributes:
      name: name of its workdir.
      content: content of its report.json.
      record: its record; None where the workdir lacks a config, as that of single networks does.
      strips: pictures of its rows, see gallery.read.
      histories: losses of its stages.
      start: its newest start: "commit", "python", "devices" and "versions"; {} if none is recorded.
    """

    name: str
    content: Mapping[str, Any]
    record: records.Record | None
    strips: Mapping[str, tuple[str, bytes]]
    histories: list[history.History]
    start: Mapping[str, Any]


def _is_floor(value: Any) -> bool:
    """Returns whether a value has the distances between real images that a report shows."""
    if not isinstance(value, dict) or not all(map(is_number, value.values())):
        return False
    return "test" in value and ("chance" in value or "halves" in value)


def _is_diversity(value: Any) -> bool:
    """Returns whether a value has a definition, and measures of real images."""
    if not (isinstance(value, dict) and TEXT.holds(value.get("definition"))):
        return False
    real = value.get("real")
    return isinstance(real, dict) and all(map(is_number, real.values()))


def read(workdir: epath.Path, content: Mapping[str, Any]) -> Finished:
    """Returns what a report shows of a run.

    Args:
      workdir: workdir of the run.
      content: content of its report.json.

    Raises:
      ValueError: for a damaged file.
    """
    check_fields(content, RULES_OF_CONTENT, str(workdir / "report.json"))
    strips, record, histories, starts = gallery.read(workdir, content["rows"]), None, [], []
    if (workdir / "config.json").is_file():
        record = records.trained(workdir)
        record = records.measured(record, content, str(workdir / "report.json"))
        histories = history.read(workdir, record.stages)
        starts = records.lines(workdir / "environment.jsonl", RULES_OF_START)
    start = starts[-1] if starts else {}
    return Finished(workdir.name, content, record, strips, histories, start)


def read_or_say(workdir: epath.Path, content: Mapping[str, Any]) -> Finished:
    """Returns the same; of a run with a damaged file, which is said, only its report and pictures.

    A damaged log must not stop a run.
    """
    try:
        return read(workdir, content)
    except (OSError, ValueError) as error:
        logging.say(f"the report has neither losses nor costs: {error}")
        return Finished(workdir.name, content, None, {}, [], {})


def versions(run: Finished) -> str:
    """Returns the commit, the Python and the packages of a run's newest start, in words."""
    found = run.start.get("versions") or {}
    commit, plus, changes = (run.start.get("commit") or "").partition(" ")
    parts = [f"commit {commit[:12]}{plus}{changes}"] if commit else []
    parts += [f"Python {run.start['python']}"] if run.start.get("python") else []
    parts += [f"{name} {found[name]}" for name in PACKAGES if name in found]
    return ", ".join(parts)
