"""Pictures of a report: the first samples of every row, all of them from the same noise.

They are strips in the workdir's folder report/, one file a row, drawn while the row is measured.
"""

import base64
import io
import re
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
from etils import epath
from matplotlib.figure import Figure

from distill_jax.data import decoding
from distill_jax.diffusion.pixels import to_uint8
from distill_jax.diffusion.spec import is_point
from distill_jax.evaluation import sheets, story
from distill_jax.evaluation.base import Row
from distill_jax.runtime import distributed
from distill_jax.runtime.files import read_bytes, replace
from distill_jax.runtime.text import printable

FOLDER, SAME_NOISE = "report", "same_noise.png"  # Names in the workdir, and in that folder.
COLUMNS = 10  # Pictures in a strip.
LARGEST = 192  # Larger pictures are reduced to this many pixels a side,
LOSSLESS = 32  # and those of more than this many are stored as WebP.
WANTED = (4, 2, 1)  # Steps of the students beside the teacher.
MAX_BYTES = 2**24  # Of a strip.
KINDS = {".png": "image/png", ".webp": "image/webp"}


def columns_of(asked: np.ndarray | None) -> list[str]:
    """Returns the titles of a strip's pictures: labels or prompts; [] without either."""
    return [] if asked is None else [printable(str(each)) for each in asked[:COLUMNS].tolist()]


def stem(row: Row) -> str:
    """Returns the name of a row's strip without its suffix."""
    sampler = re.sub(r"\W+", "-", f"{row['stage']} {row['sampler']}")
    return f"{sampler}_{row['num_steps']:04d}_w{row['w']:g}"


def keep(workdir: epath.Path, row: Row, x: np.ndarray, points: np.ndarray | None) -> None:
    """Writes the strip of a row, from process 0; samples that are no pictures have none.

    Args:
      workdir: workdir of the run.
      row: the row.
      x: its samples (n, h, w, c) in [-1, 1].
      points: training points, which samples that are points are drawn over; None for others.
    """
    if not distributed.first():
        return
    if is_point(x.shape[1:]):
        suffix, content = ".png", _scatter(x.reshape(len(x), -1), points)
    elif x.shape[-1] in (1, 3):
        suffix, content = _strip(np.nan_to_num(x[:COLUMNS]))
    else:
        return
    folder = workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / f"{stem(row)}{suffix}", content)


def _strip(x: np.ndarray) -> tuple[str, bytes]:
    """Returns the suffix and the content of a file with pictures side by side."""
    pixels = np.concatenate(list(to_uint8(x)), axis=1)
    picture = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    height, width = x.shape[1:3]
    scale = min(1.0, LARGEST / max(height, width))
    if scale < 1:
        size = round(width * scale) * len(x), round(height * scale)
        picture = picture.resize(size, PIL.Image.Resampling.LANCZOS)
    file, small = io.BytesIO(), max(height, width) <= LOSSLESS
    picture.save(file, format="PNG" if small else "WEBP", **({} if small else {"quality": 90}))
    return ".png" if small else ".webp", file.getvalue()


def _scatter(x: np.ndarray, points: np.ndarray | None) -> bytes:
    """Returns a PNG of at most 2,000 points over those of the data."""
    figure = Figure(figsize=(3, 3), layout="constrained")
    axis = figure.subplots()
    if points is not None:
        axis.scatter(points[:2000, 0], points[:2000, 1], s=2, color="0.8", linewidths=0)
    low, high = axis.get_xlim(), axis.get_ylim()
    axis.scatter(x[:2000, 0], x[:2000, 1], s=2, color="#2563eb", linewidths=0)
    if points is not None:
        axis.set(xlim=low, ylim=high)
    axis.set_aspect("equal")
    file = io.BytesIO()
    figure.savefig(file, dpi=100, format="png")
    return file.getvalue()


def read(workdir: epath.Path, rows: Sequence[Row]) -> dict[str, tuple[str, bytes]]:
    """Returns the media type and the content of the strips that are there, by `stem`."""
    found = {}
    for name in dict.fromkeys(map(stem, rows)):
        for suffix, kind in KINDS.items():
            path = workdir / FOLDER / f"{name}{suffix}"
            if path.is_file():
                found[name] = kind, read_bytes(path, MAX_BYTES)
    return found


def as_uri(kind: str, content: bytes) -> str:
    """Returns a data URI, with which a picture lies in a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def strength(rows: Sequence[Row]) -> float:
    """Returns the w that is shown first: the students' nearest to 2."""
    students = [row["w"] for row in rows if row["role"] == "student"]
    return min(students or [row["w"] for row in rows], key=lambda w: (abs(w - 2), w))


def chosen(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows of the one picture: the teacher in all steps and in 1, students in few."""
    same = [row for row in rows if row["w"] == strength(rows)]
    teachers = sorted((r for r in same if r["sampler"] == "teacher"), key=lambda r: -r["num_steps"])
    students = sorted((r for r in same if r["role"] == "student"), key=lambda r: -r["num_steps"])
    few = [row for row in students if row["num_steps"] in WANTED]
    return [*teachers[:1], *(row for row in teachers[1:] if row["num_steps"] == 1)] + (
        few or students[-len(WANTED) :]
    )


def same_noise(
    rows: Sequence[Row], strips: Mapping[str, tuple[str, bytes]], columns: Sequence[str]
) -> sheets.Picture | None:
    """Returns the one picture that matters, with named rows and columns; None without strips.

    Args:
      rows: rows of a report.
      strips: strips from `read`.
      columns: labels or prompts of the columns.
    """
    shown, pictures, names = chosen(rows), [], []
    for row, name in zip(shown, story.names(shown), strict=True):
        if strip := strips.get(stem(row)):
            pixels = decoding.decode(strip[1], stem(row))
            count = len(columns) or max(1, pixels.shape[1] // pixels.shape[0])
            count = count if pixels.shape[1] % count == 0 else 1
            pictures.append(np.split(pixels, count, axis=1))
            names.append(story.label(row, name))
    if not pictures:
        return None
    below: list[list[str]] = [[] for _ in pictures[1:]] + [list(columns)]
    return sheets.sheet(pictures, below if columns else (), names)
