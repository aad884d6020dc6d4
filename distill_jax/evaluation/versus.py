"""Runs beside each other: their numbers, the differences of their configs, and their seeds."""

import json
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from distill_jax.evaluation import story
from distill_jax.evaluation.base import Row
from distill_jax.evaluation.finished import Finished
from distill_jax.evaluation.records import Record
from distill_jax.runtime import logging, text
from distill_jax.runtime.trees import flat

SEED = "config.seed"
TITLES = ("sampler", "steps", "w", "measure")


def differences(found: Sequence[Record]) -> list[tuple[str, ...]]:
    """Returns the keys whose values differ between configs, each with its values in all of them."""
    shared = set.intersection(*(set(record.stages) for record in found))
    flats = [flat(_short(record, shared)) for record in found]
    rows = []
    for key in sorted({key for options in flats for key in options}):
        values = [_shown(options, key) for options in flats]
        if len(set(values)) > 1:
            rows.append((key, *values))
    return rows


def _short(record: Record, shared: Collection[str]) -> dict[str, Any]:
    """Returns a config, in which a stage that is not shared is only the name of its method."""
    stages = record.options["stages"]
    short = {
        name: stages[name] if name in shared else stage.method
        for name, stage in record.stages.items()
    }
    return {**record.options, "stages": short}


def _shown(options: Mapping[str, Any], key: str) -> str:
    """Returns a value of a config in a cell; a key that a config lacks is a dash."""
    return text.printable(json.dumps(options[key])[:200]) if key in options else "-"


def grouped(runs: Sequence[Finished]) -> dict[str, list[Finished]]:
    """Returns the runs by name; those whose configs differ only in the seed are one entry."""
    found: dict[str, list[Finished]] = {}
    for run in runs:
        options = {} if run.record is None else flat(run.record.options)
        alike = json.dumps({k: v for k, v in options.items() if k != SEED}, sort_keys=True)
        found.setdefault(alike if options else run.name, []).append(run)
    names: dict[str, list[Finished]] = {}
    for same in found.values():
        seeds = f" ({len(same)} seeds)" if len(same) > 1 else ""
        title = f"{same[0].name}{seeds}"
        names[title if title not in names else f"{title} [{len(names) + 1}]"] = same
    return names


def key_of(row: Row) -> tuple[str, str, int, float]:
    """Returns what identifies a row among those of a run."""
    return row["stage"], row["sampler"], row["num_steps"], row["w"]


def measures_of(row: Row) -> dict[str, float]:
    """Returns the measured numbers of a row by name, with the milliseconds of an image."""
    rest = ("num_steps", "w", "calls", "seconds_per_image", "variance")
    found = {
        name: float(value)
        for name, value in row.items()
        if name not in rest and isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    return {**found, "ms per image": 1000 * row["seconds_per_image"]}


def spread(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean and the standard deviation of seeds; None for one seed."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def side_by_side(runs: Sequence[Finished], strengths: Collection[float] = ()) -> str:
    """Returns a Markdown table of the distances and times of runs, which are its columns.

    Seeds of one config are one column: mean and standard deviation.

    Args:
      runs: finished runs.
      strengths: values of w that are shown; () for all.
    """
    groups = grouped(runs)
    cells: dict[tuple[Any, ...], dict[str, str]] = {}
    for title, same in groups.items():
        values: dict[tuple[Any, ...], list[float]] = {}
        for run in same:
            rows = run.content["rows"]
            for row, sampler in zip(rows, story.names(rows), strict=True):
                if strengths and row["w"] not in strengths:
                    continue
                for name, value in _main(row, run.content["name"]).items():
                    where = sampler, row["num_steps"], row["w"], name
                    values.setdefault(where, []).append(value)
        for where, numbers in values.items():
            cells.setdefault(where, {})[title] = _cell(*spread(numbers))
    order = sorted(cells, key=lambda key: (not key[0].startswith("teacher"), key[0], key[2]))
    lines = [
        (
            sampler,
            steps,
            f"{w:g}",
            name,
            *(cells[sampler, steps, w, name].get(t, "-") for t in groups),
        )
        for sampler, steps, w, name in order
    ]
    return logging.table([*TITLES, *groups], lines)


def _main(row: Row, name: str) -> dict[str, float]:
    """Returns the measures of a row that runs are compared in."""
    wanted = (name, f"{name}-to-teacher", "l2", "ms per image")
    return {key: value for key, value in measures_of(row).items() if key in wanted}


def _cell(mean: float, deviation: float | None) -> str:
    return f"{mean:.3g}" if deviation is None else f"{mean:.3g} ± {deviation:.2g}"
