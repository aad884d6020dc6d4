"""The part of a report on diversity and saturation: students beside their teacher and the data."""

from collections.abc import Mapping, Sequence
from typing import Any

from distill_jax.evaluation.base import Row
from distill_jax.runtime import logging
from distill_jax.sampling.batched import EACH

OWN = ("chroma", "contrast", "diversity")  # Keys of rows that only this part of a report shows.
MEASURES = ("chroma", "contrast", "recall", "diversity")


def definition(unit: str, more: int) -> str:
    """Returns the definitions of the measures.

    Args:
      unit: what distances of diversity are measured in, see Evaluator.
      more: number of samples that were added for diversity, see batched.repeats.
    """
    text = (
        "chroma: mean of C*ab over pixels, in CIELAB (D65); grey has 0, and the red of sRGB 105. "
        "contrast: standard deviation of the lightness L* (0 to 100) over the pixels of an image, "
        f"mean over images. diversity: mean distance in {unit} between two samples of the same "
        "label or prompt and w, mean over labels or prompts; of all samples, for a network without "
        "either."
    )
    if more:
        text += (
            f" For it {more} further samples were drawn, {EACH} for each of {more // EACH} of "
            "them, because fewer than an eighth of the others repeat one."
        )
    return text


def section(content: Mapping[str, Any]) -> str:
    """Returns the table of a report with the note about it; "" if an earlier version measured it.

    Args:
      content: content of report.json.
    """
    own = content.get("diversity")
    if own is None:
        return ""
    note = "In brackets: over the teacher's in its own steps at the same w."
    return f"{note}\n\n{table(content['rows'], own['real'])}"


def table(rows: Sequence[Row], real: Mapping[str, float]) -> str:
    """Returns the measures of real images and of every row as a Markdown table.

    In brackets is the ratio to the teacher's in its own, the largest, number of steps at the w.

    Args:
      rows: rows of a report.
      real: the measures of real images, see Evaluator.real.
    """
    teachers = [row for row in rows if row["sampler"] == "teacher"]
    own = {row["w"]: row for row in sorted(teachers, key=lambda row: row["num_steps"])}
    shown = [key for key in MEASURES if any(key in row for row in rows)]
    lines = [("real images", "-", "-", *(_cell(real, None, key) for key in shown))]
    for row in rows:
        other = own.get(row["w"])
        cells = (_cell(row, None if other is row else other, key) for key in shown)
        lines.append((row["sampler"], str(row["num_steps"]), f"{row['w']:g}", *cells))
    return logging.table(["sampler", "num_steps", "w", *shown], lines)


def _cell(row: Mapping[str, Any], other: Mapping[str, Any] | None, key: str) -> str:
    """Returns a measure, with its ratio to that of another row, if both have one."""
    if key not in row:
        return "-"
    value, reference = row[key], (other or {}).get(key)
    return f"{value:.3g} ({value / reference:.2f})" if reference else f"{value:.3g}"
