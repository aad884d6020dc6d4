"""Draws images from a finished network.

python -m distill_jax.sample --student=runs/digits_guided --num=100 --w=2 --out=grid.png
python -m distill_jax.sample --student=runs/digits_guided --label=3 --strip --out=strip.png
python -m distill_jax.sample --student=runs/cifar10_guided --num=50000 --w=0 --out=samples.npz
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags
from etils import epath

from distill_jax.data.prompts import in_turn, read_prompts
from distill_jax.diffusion.pixels import to_uint8
from distill_jax.diffusion.spec import is_point
from distill_jax.evaluation import pictures, sheets, strips
from distill_jax.evaluation.image_files import Unfinished
from distill_jax.runtime import distributed, logging
from distill_jax.runtime.app import needed, run_app
from distill_jax.runtime.files import absolute, written
from distill_jax.runtime.sharding import make_layout
from distill_jax.sampling import loading
from distill_jax.sampling.batched import Draw
from distill_jax.sampling.steps import predictions
from distill_jax.sampling.student import Student

FEW = 4  # Images of a strip or .gif, unless --num is given.


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    distributed.define_flags()
    loading.define_flags()
    flags.DEFINE_string("student", None, "A workdir, a stage or a final/ directory.")
    flags.DEFINE_integer("num", 100, "Number of images.", lower_bound=1)
    flags.DEFINE_multi_integer(
        "label", None, "Class of the images, or several in turn; by default all classes in turn."
    )
    flags.DEFINE_multi_string(
        "prompt", None, "Prompt of the images, or several in turn, for networks with captions."
    )
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
        "A grid as .png, .jpg or .webp, a .gif of the sampler's steps, a .npy array "
        "(num, h, w, c) of floats, an .npz of uint8 as ADM's evaluator reads it, or a folder (a "
        "name without a dot, or with / at its end) of numbered PNGs, with the prompts in "
        "metadata.jsonl, as the dataset captioned_folder reads them.",
    )
    flags.DEFINE_integer("side", sheets.SIDE, "Side to which smaller images are enlarged.", 1)
    flags.DEFINE_bool("captions", False, "Write the label or prompt below each image.")
    flags.DEFINE_bool(
        "strip", False, "Draw what each step predicts, from the same noise as the teacher's steps."
    )


def main() -> None:
    """Draws the images and writes --out."""
    values = flags.FLAGS
    directory, out = needed("student"), absolute(values.out)
    is_set = out.suffix in ("", ".npz") or values.out.endswith("/")
    pictured = out.suffix.lower() in sheets.FORMATS
    if not is_set and not pictured and out.suffix != ".npy":
        raise ValueError(
            f"--out={values.out} ends in none of {', '.join(sheets.FORMATS)}, .npy and .npz; a "
            "folder's name ends in /"
        )
    if (values.strip or values.captions) and not pictured:
        raise ValueError(f"--strip and --captions are for pictures, and --out is {values.out}")
    if values.variance is not None and (values.strip or out.suffix.lower() == ".gif"):
        raise ValueError("--variance is given; the steps of a strip or .gif are the sampler's own")
    distributed.join()
    if distributed.first():
        out.parent.mkdir(parents=True, exist_ok=True)
    layout = make_layout({"data": -1})
    student = loading.load(directory, layout, loading.parts(values), values.allow)
    if values.negative_prompt is not None:
        student = student.with_negative_prompt(values.negative_prompt)
    num = values.num
    if values.strip or out.suffix.lower() == ".gif":
        num = _write_steps(student, out, values)
    else:
        (_write_set if is_set else _write_one)(student, out, values)
    calls = logging.counted(student.calls(values.w, values.num_steps), "network call")
    if distributed.first():
        images = logging.counted(num, "image")
        logging.say(f"{images}, {calls} each, by {student.manifest.stage}: {out}")


def _write_one(student: Student, out: epath.Path, values: Any) -> None:
    """Writes a grid, a scatter of points or an array of floats.

    Raises:
      ValueError: for points in another picture than a .png.
    """
    if is_point(student.image_shape) and out.suffix not in (".png", ".npy"):
        raise ValueError(f"this network draws points, as .png or .npy, and --out is {out.name}")
    with _drawing(student, values) as draw:
        x, _ = draw(student, values.w, values.num_steps, values.variance)
    if not distributed.first():
        return
    if out.suffix == ".npy":
        with written(out) as path, path.open("wb") as file:
            np.save(file, x)
    else:
        _draw(out, x, student, values)


def _write_steps(student: Student, out: epath.Path, values: Any) -> int:
    """Writes a strip of the steps, or a .gif with a frame for each; returns the number of images.

    Raises:
      ValueError: for points, and for a moving strip.
    """
    num = values.num if flags.FLAGS["num"].present else FEW
    if is_point(student.image_shape):
        raise ValueError("a strip or .gif shows images, and this network draws points")
    draw = Draw(num, label=_labels(student, num), prompts=_prompts(student, values, num))
    texts = _texts(draw, student)
    requests = list(draw.prompts) if student.takes_prompts else draw.labels(student)
    asked = strips.Asked(values.seed, num, requests, values.w, values.num_steps)
    facts = _facts(student, values)
    if values.strip:
        if out.suffix.lower() == ".gif":
            raise ValueError(f"--strip shows all steps in one picture, and --out is {values.out}")
        sheets.save(out, strips.strip(student, asked, texts, values.side), facts)
        return num
    columns = min(math.ceil(math.sqrt(num)), num)
    steps = predictions(student, *asked)
    sheets.save(out, [_sheet(x, columns, texts, values) for _, x in steps], facts)
    return num


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
            label=_labels(student, values.num),
            prompts=_prompts(student, values, values.num),
            each=lambda drawn: progress.update(drawn, student.manifest.stage),
        )
    finally:
        progress.close()


def _made(student: Student, values: Any) -> dict[str, Any]:
    """Returns how the images are made, for the protocol of numbers that are measured on them."""
    names = ("variance", "label", "prompt", "prompts", "negative_prompt")
    given = {name: getattr(values, name) for name in names}
    optional = {k: v[0] if isinstance(v, list) and len(v) == 1 else v for k, v in given.items()}
    return {
        **pictures.made_by(student, values.w, values.num_steps, values.variance),
        "seed": values.seed,
        **{key: value for key, value in optional.items() if value is not None},
    }


def _labels(student: Student, num: int) -> np.ndarray | None:
    """Returns the labels of --label in turn; None without any."""
    given = flags.FLAGS.label
    return None if given is None else np.resize(np.asarray(given), num)


def _prompts(student: Student, values: Any, num: int) -> list[str]:
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
        return in_turn(values.prompt, num)
    return read_prompts(values.prompts, num)


def _texts(draw: Draw, student: Student) -> list[str]:
    """Returns the label or prompt of each image; "" for a network without either."""
    asked = draw.asked(student)
    return [""] * draw.num if asked is None else [str(each) for each in asked]


def _facts(student: Student, values: Any) -> dict[str, str]:
    """Returns the texts in a picture's file."""
    return {key: str(value) for key, value in _made(student, values).items()}


def _sheet(x: np.ndarray, columns: int, texts: list[str], values: Any) -> sheets.Picture:
    """Returns a grid, with its captions if they are asked for."""
    if not values.captions:
        return sheets.grid(x, columns, values.side)
    rows = [slice(i, i + columns) for i in range(0, len(x), columns)]
    return sheets.sheet(
        [list(x[row]) for row in rows], [texts[row] for row in rows], side=values.side
    )


def _draw(out: epath.Path, x: np.ndarray, student: Student, values: Any) -> None:
    """Writes a grid of images, or a scatter of points."""
    draw = Draw(len(x), label=_labels(student, len(x)), prompts=_prompts(student, values, len(x)))
    if is_point(student.image_shape):
        classes = None if values.label else np.arange(len(x)) % (student.num_classes or 1)
        points = {student.manifest.stage: x.reshape(len(x), -1)}
        pictures.save_scatter(out, points, classes, data=np.zeros((0, 2)))
        return
    columns = student.num_classes if values.label is None else 0
    columns = min(columns or math.ceil(math.sqrt(len(x))), 20, len(x))
    sheets.save(out, _sheet(x, columns, _texts(draw, student), values), _facts(student, values))


if __name__ == "__main__":
    define_flags()
    run_app(main)
