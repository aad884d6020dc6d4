"""The sentences of a report: they say what was trained, and how good the result is."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.evaluation.base import Row
from distill_jax.evaluation.records import Record
from distill_jax.runtime.logging import counted, table


def names(rows: Sequence[Row]) -> list[str]:
    """Returns the sampler of every row, with its stage where two stages have the same sampler."""
    found = Counter((row["sampler"], row["num_steps"], row["w"]) for row in rows)
    twice = {sampler for (sampler, _, _), count in found.items() if count > 1}
    return [
        f"{row['sampler']}, {row['stage']}" if row["sampler"] in twice else row["sampler"]
        for row in rows
    ]


def spoken(name: str) -> str:
    """Returns the name of a sampler in a sentence: student (sid_lsg) for student, sid_lsg."""
    who, _, kind = name.partition(", ")
    return f"{who} ({kind})" if kind else who


def label(row: Row, name: str = "") -> str:
    """Returns a row's sampler, steps and network calls, such as: student (boot), 1 step, 2 calls.

    Args:
      row: the row.
      name: name of its sampler, from `names`; "" for that in the row.
    """
    calls = "" if row["calls"] == row["num_steps"] else f", {counted(row['calls'], 'call')}"
    return f"{spoken(name or row['sampler'])}, {counted(row['num_steps'], 'step')}{calls}"


def trained(record: Record, content: Mapping[str, Any]) -> list[str]:
    """Returns what a run trained, in sentences.

    Args:
      record: record of the run.
      content: content of its report.json.
    """
    rows, stages = content["rows"], list(record.stages.values())
    steps = sorted({row["num_steps"] for row in rows if row["role"] == "student"}, reverse=True)
    most = max((row["num_steps"] for row in rows if row["sampler"] == "teacher"), default=0)
    if steps:
        count = ", ".join(map(str, steps[:-1])) + " and " * (len(steps) > 1)
        who = "A student" if len(steps) == 1 else "Students"
        verb = "was" if len(steps) == 1 else "were"
        noun = "step" if steps == [1] else "steps"
        first = f"{who} of {count}{steps[-1]} {noun} {verb} distilled"
        first += f" from a teacher of {counted(most, 'step')}" if most else ""
    else:
        first = f"A teacher of {counted(most, 'step')} was trained"
    reference = content.get("reference") or {}
    noun = "points" if content["name"] == "SW2" else "images"
    data = f"{reference['dataset']}, {reference['images']:,} {noun}" if reference else ""
    model = record.options.get("model")
    network = model.get("name") if isinstance(model, dict) else None
    updates = sum(stage.done for stage in stages)
    hours = [stage.hours for stage in stages if stage.hours is not None]
    effort = f"{counted(len(stages), 'stage')} with {updates:,} updates"
    if hours:
        effort += f" took {sum(hours):.2g} hours on {record.device}"
    return [
        f"{first}{f' on {data}' if data else ''}.",
        *([f"Network: {network}."] if network else []),
        f"{effort}.",
    ]


def stages(record: Record) -> str:
    """Returns a Markdown table of a run's stages: what each began from, and what it took."""
    rows = []
    for stage in record.stages.values():
        begun = [*stage.parents, *(["a network of another run"] if stage.outside else [])]
        rows.append(
            (
                stage.name,
                stage.method,
                ", ".join(begun) or "-",
                f"{stage.done:,}",
                "-" if stage.hours is None else f"{stage.hours:.2g}",
                "-" if stage.cpu_seconds is None else f"{stage.cpu_seconds:,.0f}",
            )
        )
    return table(("stage", "method", "began from", "updates", "hours", "CPU-seconds"), rows)


def headlines(name: str, rows: Sequence[Row]) -> list[str]:
    """Returns a sentence or more for every student of the fewest steps, by w.

    Args:
      name: name of the distance.
      rows: rows of a report.
    """
    students = [row for row in rows if row["role"] == "student"]
    teachers = [row for row in rows if row["sampler"] == "teacher"]
    if not students or not teachers:
        return []
    fewest = min(row["num_steps"] for row in students)
    most = max(row["num_steps"] for row in teachers)
    lines, shown = [], [row for row in students if row["num_steps"] == fewest]
    for row, sampler in zip(shown, names(shown), strict=True):
        same_w = {r["num_steps"]: r for r in teachers if r["w"] == row["w"]}
        who = spoken(sampler)
        unit = "" if name == "wrong" else f"{name} "
        text = f"w = {row['w']:g}: the {who} has {unit}{_in_calls(row, name)}."
        if whole := same_w.get(most):
            ratio = whole["seconds_per_image"] / max(row["seconds_per_image"], 1e-12)
            slow = f" ({ratio:.0f}x the time)" if ratio >= 1.5 else ""
            text += f" The teacher has {_in_calls(whole, name)}{slow}"
            if fewest != most and (few := same_w.get(fewest)):
                text += f", and {_in_calls(few, name)}"
            text += "."
        lines.append(text)
    return lines


def floor(content: Mapping[str, Any]) -> str:
    """Returns how near real images are to each other, in a sentence; "" if that is not known."""
    name, found = content["name"], content.get("floor", {})
    if "chance" in found:
        return (
            f"{name} is the share of pictures that do not show their prompt: "
            f"{found['chance']:.3g} by chance, {found['test']:.3g} of real ones."
        )
    if "halves" not in found:
        return ""
    noun = "points" if name == "SW2" else "images"
    return (
        f"{name} is a distance to real {noun}, so lower is better: two halves of the training "
        f"{noun} are {found['halves']:.3g} apart."
    )


def _in_calls(row: Row, name: str) -> str:
    """Returns a distance and the number of network calls in words."""
    value = f"{100 * row[name]:.3g} % wrong" if name == "wrong" else f"{row[name]:.3g}"
    return f"{value} in {counted(row['calls'], 'call')}"
