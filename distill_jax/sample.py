"""Draws images from a finished network.

python -m distill_jax.sample --student=runs/digits_guided --num=100 --w=2 --out=grid.png
python -m distill_jax.sample --student=runs/cifar10_guided --num=50000 --w=0 --out=samples.npz
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from distill_jax.data.prompts import read_prompts
from distill_jax.diffusion.pixels import to_uint8
from distill_jax.diffusion.spec import is_point
from distill_jax.evaluation import pictures
from distill_jax.evaluation.image_files import Unfinished
from distill_jax.runtime import distributed, logging
from distill_jax.runtime.app import needed, run_app
from distill_jax.runtime.files import absolute, written
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
    flags.DEFINE_string("prompt", None, "Prompt of all images, for networks with captions.")
    flags.DEFINE_string("prompts", None, "File with one prompt in each line, taken in turn.")
    flags.DEFINE_string("negative_prompt", None, "Prompt to be guided away from, for teachers.")
    flags.DEFINE_float("w", None, "Guidance strength, (1 + w) cond - w uncond.")
    flags.DEFINE_integer("num_steps", None, "Sampling steps, for networks that allow any number.")
    flags.DEFINE_float(
        "variance", None, "Ancestral sampling with this variance: 0 small, 1 large, or between."
    )
    flags.DEFINE_integer("seed", 0, "Seed of the noise.", 0, 2**32 - 1)
    flags.DEFINE_string(
        "out",
        "grid.png",
        "A .png grid, a .npy array (num, h, w, c) of floats, an .npz of uint8 as ADM's evaluator "
        "reads it, or a folder (a name without a dot, or with / at its end) of numbered PNGs, with "
        "the prompts in metadata.jsonl, as the dataset captioned_folder reads them.",
    )


def main() -> None:
    """Draws the images and writes --out."""
    values = flags.FLAGS
    directory, out = needed("student"), absolute(values.out)
    is_set = out.suffix in ("", ".npz") or values.out.endswith("/")
    if not is_set and out.suffix not in (".png", ".npy"):
        raise ValueError(
            f"--out={values.out} ends in neither .png, .npy nor .npz; a folder's name ends in /"
        )
    distributed.join()
    if distributed.first():
        out.parent.mkdir(parents=True, exist_ok=True)
    layout = make_layout({"data": -1})
    student = loading.load(directory, layout, loading.parts(values), values.allow)
    if values.negative_prompt is not None:
        student = student.with_negative_prompt(values.negative_prompt)
    (_write_set if is_set else _write_one)(student, out, values)
    calls = logging.counted(student.calls(values.w, values.num_steps), "network call")
    images = logging.counted(values.num, "image")
    if distributed.first():
        logging.say(f"{images}, {calls} each, by {student.manifest.stage}: {out}")


def _write_one(student: Student, out: epath.Path, values: Any) -> None:
    """Writes a grid, a scatter of points or an array of floats."""
    with _drawing(student, values) as draw:
        x, _ = draw(student, values.w, values.num_steps, values.variance)
    if not distributed.first():
        return
    if out.suffix == ".npy":
        with written(out) as path, path.open("wb") as file:
            np.save(file, x)
    else:
        _draw(out, x, student, values)


def _write_set(student: Student, out: epath.Path, values: Any) -> None:
    """Writes an .npz or a folder in batches, from where an earlier command was stopped."""
    files = None
    if distributed.first():
        files = Unfinished(out, values.num, student.image_shape, _made(student, values))
    done = distributed.broadcast_from_first(files.done if files else 0)
    with _drawing(student, values, done) as draw:
        given = student, values.w, values.num_steps, values.variance
        for first, x in draw.batches(*given, start=done):
            if files:
                files.add(first, to_uint8(x))
    if files:
        files.finish(draw.labels(student), draw.prompts)


@contextlib.contextmanager
def _drawing(student: Student, values: Any, done: int = 0) -> Iterator[Draw]:
    """Yields the sampling that the flags describe, with a progress bar."""
    progress = logging.Progress("sample", values.num, done)
    try:
        yield Draw(
            values.num,
            seed=values.seed,
            label=values.label,
            prompts=_prompts(student, values),
            each=lambda drawn: progress.update(drawn, student.manifest.stage),
        )
    finally:
        progress.close()


def _made(student: Student, values: Any) -> dict[str, Any]:
    """Returns how the images are made, for the protocol of numbers that are measured on them."""
    names = ("variance", "label", "prompt", "prompts", "negative_prompt")
    optional = {name: getattr(values, name) for name in names}
    return {
        **pictures.made_by(student, values.w, values.num_steps, values.variance),
        "seed": values.seed,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _prompts(student: Student, values: Any) -> list[str]:
    """Returns the prompts of the images; [] for a network without captions.

    Raises:
      ValueError: for prompts that the network does not take, and for none or an empty file.
    """
    given = [name for name in ("prompt", "prompts") if getattr(values, name) is not None]
    if not student.takes_prompts:
        if given:
            raise ValueError(
                f"--{given[0]} is given, and this network was trained without captions"
            )
        return []
    if values.label is not None:
        raise ValueError("--label is given, and this network draws from prompts: leave it out")
    if len(given) != 1:
        raise ValueError(
            "this network draws from prompts: expected --prompt='a text', or --prompts=FILE with "
            "one in each line"
        )
    if values.prompt is not None:
        return [values.prompt] * values.num
    return read_prompts(values.prompts, values.num)


def _draw(out: epath.Path, x: np.ndarray, student: Student, values: Any) -> None:
    """Writes a grid of images, or a scatter of points."""
    label = values.label
    if is_point(student.image_shape):
        classes = None if label is not None else np.arange(len(x)) % (student.num_classes or 1)
        points = {student.manifest.stage: x.reshape(len(x), -1)}
        pictures.save_scatter(out, points, classes, data=np.zeros((0, 2)))
        return
    columns = student.num_classes if label is None else 0
    columns = columns or math.ceil(math.sqrt(len(x)))
    facts = {key: str(value) for key, value in _made(student, values).items()}
    pictures.save_grid(out, x, min(columns, 20, len(x)), facts=facts)


if __name__ == "__main__":
    define_flags()
    run_app(main)
