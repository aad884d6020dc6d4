"""Pictures of finished networks: grids of images, scatter plots, codes of an encoder."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import PIL.Image
from etils import epath
from matplotlib.figure import Figure

from distill_jax.data import Dataset
from distill_jax.data.prompts import captions_of
from distill_jax.diffusion.pixels import normalise
from distill_jax.diffusion.spec import is_point
from distill_jax.evaluation.sheets import SIDE, grid, save
from distill_jax.runtime import distributed
from distill_jax.runtime.files import replace
from distill_jax.sampling.conditioners import Labels, Requests
from distill_jax.sampling.student import Student
from distill_jax.storage import checkpoint

PROMPTS = "prompts"  # Name of the text in a grid with the prompts of its columns, one a line.


def made_by(
    student: Student, w: float | None, num_steps: int | None = None, variance: float | None = None
) -> dict[str, Any]:
    """Returns how a student draws, as plain JSON: stage, weights, sampler, steps and w."""
    sampler, guidance = student.sampler(num_steps), student.trained.guidance
    if w is None:
        w = guidance.fixed_w if guidance.w_range is None else guidance.w_range[0]
    name = "ancestral" if variance is not None else type(sampler).__name__.lower()
    print_of = checkpoint.fingerprint(student.directory) if student.directory else 0
    return {
        "stage": student.manifest.stage,
        "weights": f"{print_of:08x}",
        "sampler": name,
        "steps": int(sampler.num_steps),
        "w": float(w),
    }


def is_whole(path: epath.Path) -> bool:
    """Returns whether a file begins and ends as a PNG does."""
    content = path.read_bytes() if path.is_file() else b""
    return content.startswith(b"\x89PNG\r\n\x1a\n") and content.endswith(b"IEND\xaeB`\x82")


def save_grid(
    path: epath.PathLike,
    x: np.ndarray,
    columns: int,
    side: int = SIDE,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Writes images (n, h, w, c) with `columns` per row; see sheets.grid and sheets.save."""
    save(path, grid(x, columns, side), facts)


def save_scatter(
    path: epath.Path, samples: Mapping[str, np.ndarray], label: np.ndarray | None, data: np.ndarray
) -> None:
    """Writes a PNG of points (n, 2), coloured by class, over the data's points in grey.

    Args:
      path: path of the file.
      samples: points by the title of their panel.
      label: classes (n,) of the points in every panel, None for one colour.
      data: points (m, 2) of the data.
    """
    figure = Figure(figsize=(4 * len(samples), 4), layout="constrained")
    axes = figure.subplots(1, len(samples), squeeze=False, sharex=True, sharey=True)[0]
    for axis, (title, points) in zip(axes, samples.items(), strict=True):
        axis.scatter(*data.T, s=2, color="0.8", linewidths=0)
        axis.scatter(*points.T, s=2, c=label, cmap="tab10", vmin=0, vmax=9, linewidths=0)
        axis.set(title=title, aspect="equal")
    file = io.BytesIO()
    figure.savefig(file, dpi=110, format="png")
    _write(epath.Path(path), file.getvalue())


def draw(student: Student, path: epath.Path, w: tuple[float, ...], dataset: Dataset) -> None:
    """Writes the picture of a finished stage: samples, or the codes of an encoder."""
    if student.trained.sampler.decodes:
        draw_grid(student, path, w, dataset)
    else:
        draw_codes(student, path, dataset)


def draw_grid(student: Student, path: epath.Path, w: tuple[float, ...], dataset: Dataset) -> None:
    """Writes samples from the same noise by w (rows) and class or prompt, or a scatter plot."""
    strengths: Sequence[float | None] = w
    if student.trained.guidance.w_range is not None:
        low, high = student.trained.guidance.w_range
        strengths = [strength for strength in w if low <= strength <= high] or [low]
    elif not student.can_be_guided:
        strengths = (None,)
    if is_point(student.image_shape):
        _draw_points(student, path, strengths, dataset.images("test", 2000).x)
        return
    columns = min(student.num_classes, 10) or 10
    prompts = captions_of(dataset, "test", columns) if student.takes_prompts else None
    columns = len(prompts or range(columns))
    rows = [student.sample(jax.random.key(0), columns, prompts, w) for w in strengths]
    x = np.concatenate([distributed.allgather(row) for row in rows])
    save_grid(path, x, columns, facts={PROMPTS: "\n".join(prompts)} if prompts else None)


def prompts_of(path: epath.Path) -> list[str]:
    """Returns the prompts of a grid's columns; [] for a grid without them."""
    try:
        with PIL.Image.open(io.BytesIO(path.read_bytes()), formats=("PNG",)) as picture:
            return str(picture.info.get(PROMPTS, "")).splitlines()
    except (OSError, ValueError):  # A damaged picture has no prompts.
        return []


def _draw_points(
    student: Student, path: epath.Path, w: Sequence[float | None], data: np.ndarray
) -> None:
    """Writes a scatter plot of 2,000 samples at every w over 2,000 points of the data."""
    label = Labels(student.manifest.spec).in_turn(2000)
    samples = {}
    for strength in w:
        title = student.manifest.stage + ("" if strength is None else f", w = {strength:g}")
        x = student.sample(jax.random.key(0), 2000, label, strength)
        samples[title] = distributed.allgather(x).reshape(2000, -1)
    save_scatter(path, samples, label, data.reshape(len(data), -1))


def draw_codes(student: Student, path: epath.Path, dataset: Dataset) -> None:
    """Writes images, one of each of the first classes, above the noise that they are encoded into.

    The noise is divided by 3, so that black and white are three standard deviations; that of
    latents is decoded.
    """
    images = dataset.images("test", 200)
    label: Requests = None
    classes = range(min(student.num_classes, 10))
    first = [int(np.argmax(images.label == number)) for number in classes] or [*range(10)]
    x = normalise(images.x[first])
    if student.takes_prompts:
        captions = captions_of(dataset, "test", 200)
        label = [captions[i] for i in first]
    elif student.num_classes:
        label = images.label[first]
    codes = student.codec.decode(student.encode(x, label) / 3)
    save_grid(path, np.concatenate([x, distributed.allgather(codes)]), len(first))


def _write(path: epath.Path, content: bytes) -> None:
    """Writes a file atomically, from process 0."""
    if distributed.first():
        replace(path, content)
