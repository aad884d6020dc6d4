"""Draws images from a finished network.

python -m distill_jax.sample --student=runs/digits_guided --num=100 --w=2 --out=grid.png
"""

import math

import numpy as np
from absl import flags
from etils import epath

from distill_jax.diffusion.spec import is_point
from distill_jax.evaluation import pictures
from distill_jax.runtime import distributed, logging
from distill_jax.runtime.app import needed, run_app
from distill_jax.runtime.files import absolute
from distill_jax.runtime.sharding import make_layout
from distill_jax.sampling import loading
from distill_jax.sampling.batched import Draw
from distill_jax.sampling.student import Student


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    distributed.define_flags()
    loading.define_flags()
    flags.DEFINE_string("student", None, "A workdir, a stage or a final/ directory.")
    flags.DEFINE_integer("num", 100, "Number of images.", lower_bound=1)
    flags.DEFINE_integer("label", None, "Class of all images; by default the classes in turn.")
    flags.DEFINE_float("w", None, "Guidance strength, (1 + w) cond - w uncond.")
    flags.DEFINE_integer("num_steps", None, "Sampling steps, for networks that allow any number.")
    flags.DEFINE_float(
        "variance", None, "Ancestral sampling with this variance: 0 small, 1 large, or between."
    )
    flags.DEFINE_integer("seed", 0, "Seed of the noise.", 0, 2**32 - 1)
    flags.DEFINE_string("out", "grid.png", "A .png grid, or a .npy array (num, h, w, c).")


def main() -> None:
    """Draws the images and writes --out."""
    values = flags.FLAGS
    directory, out = needed("student"), absolute(values.out)
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"--out={out} ends in neither .png nor .npy")
    distributed.join()
    if distributed.first():
        out.parent.mkdir(parents=True, exist_ok=True)
    layout = make_layout({"data": -1})
    student = loading.load(directory, layout, loading.parts(values), values.allow)
    progress = logging.Progress("sample", values.num)
    draw = Draw(
        values.num,
        seed=values.seed,
        label=values.label,
        each=lambda done: progress.update(done, student.manifest.stage),
    )
    try:
        x, _ = draw(student, values.w, values.num_steps, values.variance)
    finally:
        progress.close()
    if not distributed.first():
        return
    if out.suffix == ".npy":
        with out.open("wb") as file:
            np.save(file, x)
    else:
        _draw(out, x, student, values.label)
    calls = logging.counted(student.calls(values.w, values.num_steps), "network call")
    images = logging.counted(len(x), "image")
    logging.say(f"{images}, {calls} each, by {student.manifest.stage}: {out}")


def _draw(out: epath.Path, x: np.ndarray, student: Student, label: int | None) -> None:
    """Writes a grid of images, or a scatter of points."""
    if is_point(student.image_shape):
        classes = None if label is not None else np.arange(len(x)) % (student.num_classes or 1)
        points = {student.manifest.stage: x.reshape(len(x), -1)}
        pictures.save_scatter(out, points, classes, data=np.zeros((0, 2)))
        return
    columns = student.num_classes if label is None else 0
    columns = columns or math.ceil(math.sqrt(len(x)))
    pictures.save_grid(out, x, min(columns, 20, len(x)))


if __name__ == "__main__":
    define_flags()
    run_app(main)
