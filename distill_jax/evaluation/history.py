"""The losses of a run's stages, for curves."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from etils import epath

from distill_jax.evaluation import records

MOST = 300  # Points of a curve.


class History(NamedTuple):
    """The losses of a stage.

    Attributes:
      stage: name of the stage.
      curves: points (iteration, value) by the name of the loss.
    """

    stage: str
    curves: dict[str, list[tuple[int, float]]]


def read(workdir: epath.Path, stages: Mapping[str, records.Stage]) -> list[History]:
    """Returns the losses in the scalars.jsonl of every stage that has one.

    Raises:
      ValueError: for a damaged log.
    """
    found = []
    for name in stages:
        lines = records.lines(workdir / name / "scalars.jsonl", records.RULES_OF_LINE)
        lines = sorted(lines, key=lambda line: line["step"])
        keys = dict.fromkeys(key for line in lines for key in line if key.endswith("loss"))
        curves = {key: _points(lines, key) for key in keys}
        if curves := {key: points for key, points in curves.items() if points}:
            found.append(History(name, curves))
    return found


def _points(lines: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    """Returns the finite values of a loss, at most MOST of them.

    The last one is left out if it is the mean of much fewer iterations than the others, as a stage
    writes it at its end.
    """
    points = [
        (line["step"], float(line[key]))
        for line in lines
        if isinstance(line.get(key), (int, float)) and math.isfinite(line[key])
    ]
    if len(points) > 3 and 2 * (points[-1][0] - points[-2][0]) < points[-2][0] - points[-3][0]:
        points.pop()
    every = -(-len(points) // MOST)
    return points[::-1][:: max(1, every)][::-1]
