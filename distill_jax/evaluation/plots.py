"""The data of a report's page: numbers for curves, pictures for sliders, as plain JSON."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import PIL.Image

from distill_jax.evaluation import gallery, story, versus
from distill_jax.evaluation.base import Row
from distill_jax.evaluation.finished import Finished
from distill_jax.evaluation.history import History

DECADES = 4  # Of a logarithmic axis; smaller values, which may be rounding errors, lie at its end.
HIGHER = (
    *("accuracy", "recall", "precision", "retrieval", "PSNR"),
    *("all", "colour", "shape", "relation", "count"),
)
NEUTRAL = ("chroma", "contrast", "diversity", "spread")


def data(groups: Mapping[str, Sequence[Finished]]) -> dict[str, Any]:
    """Returns the data of a page about runs.

    Args:
      groups: runs by name; several in one group are seeds, whose means are drawn with error bars.
    """
    rows = [row for i, runs in enumerate(groups.values()) for row in _rows(i, runs)]
    strengths = sorted({row["w"] for row in rows})
    steps = sorted({row["n"] for row in rows})
    runs = [run for same in groups.values() for run in same]
    shown = first_rows(groups, rows)
    students = [rows[i]["n"] for i in shown if rows[i]["role"] == "student"]
    w = gallery.strength(runs[0].content["rows"])
    return {
        "groups": list(groups),
        "columns": runs[0].content.get("columns", []),
        "rows": rows,
        "measures": _measures(rows, runs),
        "strengths": strengths,
        "steps": steps,
        "strips": {
            f"{i}/{name}": _strip(*strip, len(same[0].content.get("columns", [])))
            for i, same in enumerate(groups.values())
            for name, strip in same[0].strips.items()
        },
        "first": {
            "w": strengths.index(w),
            "n": steps.index(min(students or steps)),
            "rows": shown,
        },
        "losses": [loss for run in runs for loss in _losses(run, len(runs) > 1)],
    }


def first_rows(groups: Mapping[str, Sequence[Finished]], rows: Sequence[Row]) -> list[int]:
    """Returns the places of the rows in the one picture: a teacher, and students of all runs."""
    found = []
    for i, same in enumerate(groups.values()):
        keys = [versus.key_of(row) for row in gallery.chosen(same[0].content["rows"])]
        mine = [
            place
            for key in keys
            for place, row in enumerate(rows)
            if row["group"] == i and tuple(row["key"]) == key
        ]
        found += mine if i == 0 else [place for place in mine if rows[place]["role"] == "student"]
    return found


def _rows(group: int, runs: Sequence[Finished]) -> list[Row]:
    """Returns the rows of a group: those of its first run, with the means of all runs."""
    others = [{versus.key_of(row): row for row in run.content["rows"]} for run in runs]
    found = []
    mine = runs[0].content["rows"]
    for row, sampler in zip(mine, story.names(mine), strict=True):
        key = versus.key_of(row)
        seeds = [versus.measures_of(rows[key]) for rows in others if key in rows]
        values: dict[str, float | None] = {}
        errors: dict[str, float | None] = {}
        for name in seeds[0]:
            numbers = [seed[name] for seed in seeds if math.isfinite(seed.get(name, math.nan))]
            values[name], errors[name] = versus.spread(numbers) if numbers else (None, None)
        found.append(
            {
                "group": group,
                "key": list(key),
                "role": row["role"],
                "sampler": sampler,
                "label": story.label(row, sampler),
                "n": row["num_steps"],
                "w": row["w"],
                "ms": values["ms per image"],
                "values": values,
                "errors": errors,
                "strip": f"{group}/{gallery.stem(row)}",
            }
        )
    return found


def _measures(rows: Sequence[Row], runs: Sequence[Finished]) -> list[dict[str, Any]]:
    """Returns the measures of rows, the distances first, each with the range of its axis."""
    distances = dict.fromkeys(run.content["name"] for run in runs)
    first = [n for name in distances for n in (name, f"{name}-to-teacher")] + ["l2"]
    names = dict.fromkeys(name for row in rows for name in row["values"])
    found = []
    for name in (*(n for n in first if n in names), *(n for n in names if n not in first)):
        values = [v for row in rows if (v := row["values"].get(name)) is not None]
        if not values:
            continue
        better = "Higher is better." if name in HIGHER else "Lower is better."
        note = "" if name in NEUTRAL else better
        log = min(values) >= 0 < max(values) and (name in first or name == "ms per image")
        found.append({"name": name, "note": note, **span(values, log)})
    return found


def span(values: Sequence[float], log: bool) -> dict[str, Any]:
    """Returns the range of an axis: "low", "high", and whether it is logarithmic, "log".

    A logarithmic axis has at most DECADES: a value near zero does not squash the others.
    """
    low, high = min(values), max(values)
    if log and high > 0:
        low = max(low, high / 10**DECADES)
        margin = max(1.1, (high / low) ** 0.05)
        return {"log": True, "low": low / margin, "high": high * margin}
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return {"log": False, "low": low - margin, "high": high + margin}


def _strip(kind: str, content: bytes, columns: int) -> dict[str, Any]:
    """Returns a strip with the number, the height and the shape of its pictures."""
    with PIL.Image.open(io.BytesIO(content), formats=("PNG", "WEBP")) as picture:
        width, height = picture.size
    count = columns or max(1, round(width / height))
    count = count if width % count == 0 else 1
    uri = gallery.as_uri(kind, content)
    return {"uri": uri, "count": count, "side": height, "aspect": width / count / height}


def _losses(run: Finished, named: bool) -> list[dict[str, Any]]:
    """Returns the curves of every stage of a run."""
    found = []
    for each in run.histories:
        title = f"{run.name}: {each.stage}" if named else each.stage
        lines = [{"name": name, "points": points} for name, points in each.curves.items()]
        last = max(points[-1][0] for points in each.curves.values())
        found.append({"stage": title, "lines": lines, "last": last, "y": _range(each)})
    return found


def _range(each: History) -> dict[str, Any]:
    """Returns the axis of a stage's losses, without their highest and lowest percent."""
    values = sorted(value for points in each.curves.values() for _, value in points)
    cut = len(values) // 100
    kept = values[cut : len(values) - cut]
    return span(kept, kept[0] > 0 and kept[-1] > 3 * kept[0])
