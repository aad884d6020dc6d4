"""The figure of a report: quality against sampling steps."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

Row = dict[str, Any]
# Smaller distances are rounding errors, which would squash a logarithmic axis.
SAME = 1e-6
# Title of a panel and note about its measure, by measure. {0} is the name of the distance, {1} the
# teacher's number of steps, {2} the distance between halves of the data.
PANELS = {
    "FD": (
        "{0}: distance to the data",
        "Frechet distance to the training images in a classifier's\n"
        "features, not FID; two halves of them are {2:.2g} apart",
    ),
    "SW2": (
        "{0}: distance to the data",
        "sliced Wasserstein-2 distance to the training points\n"
        "of a class; two halves of them are {2:.2g} apart",
    ),
    "wrong": (
        "{0}: pictures that do not show their prompt",
        "fraction, read from the pixels, of prompts with\nthe training's pairs of colour and shape",
    ),
    "to-teacher": (
        "{0}-to-teacher: distance to the teacher",
        "the same distance, to the samples of\nthe teacher in {1} steps at the same w",
    ),
    "l2": (
        "l2: difference from the teacher's samples",
        "root mean square, of data in [-1, 1], to the teacher's\n"
        "sample in {1} steps from the same noise at the same w",
    ),
}
TEACHERS = (("--", "o"), (":", "D"), ("-.", "s"))
STUDENTS = tuple(("-", marker) for marker in "os^DvPX*<>hp")


class Look(NamedTuple):
    """The style of a sampler's line; its colour shows w."""

    sampler: str
    linestyle: str
    marker: str
    hollow: bool

    def line(self, color: Any) -> dict[str, Any]:
        """Returns the properties of a Line2D."""
        return {
            "color": color,
            "linestyle": self.linestyle,
            "linewidth": 1.1 if self.hollow else 1.8,
            "marker": self.marker,
            "markersize": 5 if self.hollow else 7,
            "markerfacecolor": "white" if self.hollow else color,
            "markeredgecolor": color if self.hollow else "white",
            "markeredgewidth": 1.0 if self.hollow else 0.5,
        }


def looks(rows: Sequence[Row]) -> list[Look]:
    """Returns dashed lines with hollow markers for the teacher's samplers, solid for students."""
    hollow = {row["sampler"]: row["sampler"].startswith("teacher") for row in rows}
    styles = {True: itertools.cycle(TEACHERS), False: itertools.cycle(STUDENTS)}
    names = sorted(hollow, key=lambda name: (not hollow[name], name))
    return [Look(name, *next(styles[hollow[name]]), hollow[name]) for name in names]


def quality(content: dict[str, Any]) -> Figure:
    """Returns the figure of every distance in a report against sampling steps, one panel each.

    Args:
      content: content of report.json: "name" and "floor" of the distance, and "rows".
    """
    name, rows = content["name"], content["rows"]
    measures = [name, f"{name}-to-teacher", "l2"]
    measures = [key for key in measures if any(_drawn(row.get(key)) for row in rows)] or [name]
    lines, strengths = looks(rows), sorted({row["w"] for row in rows})
    figure = Figure(figsize=(0.4 + 4.6 * len(measures), 5.2), layout="constrained")
    axes = list(figure.subplots(1, len(measures), squeeze=False)[0])
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.8, len(strengths)))
    for axis, measure in zip(axes, measures, strict=True):
        for w, color in zip(strengths, colors, strict=True):
            for look in lines:
                mine = [r for r in rows if r["w"] == w and r["sampler"] == look.sampler]
                mine = sorted(mine, key=lambda row: row["num_steps"])
                steps = [row["num_steps"] for row in mine]
                values = [_drawn(row.get(measure)) or math.nan for row in mine]
                axis.plot(steps, values, **look.line(color), zorder=2 if look.hollow else 3)
        _scale(axis, rows, measure)
    _describe(axes, measures, content)
    handles = [
        *(Line2D([], [], **k.line("0.2"), label=_label(k.sampler, rows)) for k in lines),
        *(
            Line2D([], [], color=color, linewidth=5, label=f"w = {w:g}")
            for w, color in zip(strengths, colors, strict=True)
        ),
    ]
    style: dict[str, Any] = {"loc": "outside lower center", "fontsize": 9, "handlelength": 3.0}
    figure.legend(handles=handles, ncols=2 * len(measures), **style)
    return figure


def _drawn(value: float | None) -> float | None:
    """Returns the value, or None if a logarithmic axis cannot show it."""
    return value if value is not None and SAME < value < math.inf else None


def _label(sampler: str, rows: Sequence[Row]) -> str:
    """Returns the name of a sampler, with a note if each step makes two network calls."""
    mine = [row for row in rows if row["sampler"] == sampler]
    twice = all(row["calls"] == 2 * row["num_steps"] for row in mine)
    return f"{sampler} (2 network calls a step)" if twice else sampler


def _describe(axes: Sequence[Axes], measures: Sequence[str], content: dict[str, Any]) -> None:
    """Adds the title and note of every panel."""
    texts = [_words(measure, content) for measure in measures]
    most = max(note.count("\n") for _, note in texts)
    place: dict[str, Any] = {"xy": (0, 1), "xytext": (0, 6), "textcoords": "offset points"}
    style: dict[str, Any] = {"va": "bottom", "fontsize": 8.5, "color": "0.3"}
    for axis, measure, (title, note) in zip(axes, measures, texts, strict=True):
        axis.set_title(title, loc="left", fontsize=11, pad=20 + 12 * most)
        note += "\n" * (most - note.count("\n"))  # So that all notes begin at the same height.
        axis.annotate(note, **place, xycoords="axes fraction", **style)
        axis.set_ylabel(f"{measure} (lower is better)")


def _words(measure: str, content: dict[str, Any]) -> tuple[str, str]:
    """Returns the title of a panel, and the note below it."""
    name, rows = content["name"], content["rows"]
    kind = "to-teacher" if measure.endswith("-to-teacher") else measure.partition("-")[0]
    most = max((row["num_steps"] for row in rows if row["sampler"] == "teacher"), default=0)
    halves = content["floor"].get("halves", 0.0)
    title, note = (text.format(name, most, halves) for text in PANELS[kind])
    if measure == name and any(row["w"] > 0 for row in rows):
        note += "\n(guidance, w > 0, moves samples away on purpose)"
    lost = sum(not math.isfinite(row.get(measure, 0.0)) for row in rows)
    if lost:
        note += f"\nnot finite, and not drawn: {lost} of {len(rows)}"
    return title, note


def _scale(axis: Axes, rows: Sequence[Row], measure: str) -> None:
    """Sets logarithmic axes with plain numbers for any range of values."""
    axis.set(xscale="log", yscale="log", xlabel="sampling steps")
    counts = sorted({row["num_steps"] for row in rows})
    margin = max(1.1, (counts[-1] / counts[0]) ** 0.05)
    axis.set_xlim(counts[0] / margin, counts[-1] * margin)
    axis.set_xticks(_apart(counts))
    axis.tick_params("x", labelrotation=45 if len(counts) > 8 else 0)
    values = [value for row in rows if (value := _drawn(row.get(measure)))] or [1.0]
    margin = max(1.1, (max(values) / min(values)) ** 0.05)
    low, high = min(values) / margin, max(values) * margin
    axis.set_ylim(low, high)
    axis.set_yticks(ticks(low, high))
    for one in (axis.xaxis, axis.yaxis):
        one.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def _apart(counts: Sequence[int]) -> list[int]:
    """Returns the ascending numbers whose labels do not overlap."""
    least = (counts[-1] / counts[0]) ** (1 / 16) if len(counts) > 8 else 1.0
    kept = [counts[0]]
    for count in counts[1:]:
        if count >= least * kept[-1]:
            kept.append(count)
    return kept


def ticks(low: float, high: float) -> np.ndarray:
    """Returns at least three round numbers from `low` to `high` for a logarithmic axis.

    They are powers of ten, or these times 1, 2 and 5, or multiples of a step, in this order.
    """
    decades = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        found = np.outer(decades, factors).ravel()
        found = found[(low <= found) & (found <= high)]
        if len(found) >= 3:
            return found
    found = np.asarray(MaxNLocator(5, min_n_ticks=3).tick_values(low, high))
    return found[(low <= found) & (found <= high)]
