"""Strips: what each step of a student predicts, below the steps of its teacher."""

from typing import Any, NamedTuple

import numpy as np

from distill_jax.evaluation import sheets
from distill_jax.evaluation.compare import root
from distill_jax.runtime import logging
from distill_jax.sampling.loading import read
from distill_jax.sampling.steps import predictions
from distill_jax.sampling.student import Student

COLUMNS = 8  # Steps of a strip; of samplers with more, some are left out, but not the last.


class Asked(NamedTuple):
    """Arguments of Student.sample for the images of a strip."""

    key: int
    num: int
    label: Any
    w: float | None
    num_steps: int | None


def strip(student: Student, asked: Asked, texts: list[str], side: int) -> sheets.Picture:
    """Returns a picture with two rows for each image: its teacher's steps, and its own.

    Both start from the same noise. The teacher is guided as the student was trained, or takes the
    same w. Without a teacher, or where it is gone, there is one row.

    Args:
      student: a finished network.
      asked: what is drawn.
      texts: label or prompt of each image, "" for none.
      side: see sheets.sheet.
    """
    drawn = {}
    teacher = root(student) if student.manifest.distilled else None
    if teacher is not None:
        own = student.trained.guidance.fixed_w if asked.w is None else asked.w
        w = own if teacher.can_be_guided or teacher.takes_w else None
        drawn["teacher"] = predictions(read(teacher), *asked._replace(w=w, num_steps=None))
    name = "student" if student.manifest.distilled else student.manifest.stage
    drawn[name] = predictions(student, *asked)
    rows, captions, names = [], [], []
    for i, text in enumerate(texts):
        for who, steps in drawn.items():
            kept = [steps[j] for j in _chosen(len(steps))]
            rows.append([x[i] for _, x in kept])
            captions.append([f"t = {t:.3g}" for t, _ in kept])
            about = f"{who}, {logging.counted(len(steps), 'step')}"
            names.append(f"{about}: {text}" if text else about)
    return sheets.sheet(rows, captions, names, side)


def _chosen(count: int) -> list[int]:
    """Returns the numbers of at most COLUMNS steps, the first and the last among them."""
    return sorted({*np.linspace(0, count - 1, min(count, COLUMNS)).round().astype(int).tolist()})
