"""Edits images with finished networks: style transfer, image to image, inpainting, round trips.

python -m distill_jax.edit style --encoder=runs/digits_encoder/s05_e0004 \
    --student=runs/digits_encoder/s11_n0004 --source-label=3 --target-label=8 --out=style.png
python -m distill_jax.edit sdedit --student=runs/digits_encoder/s11_n0004 --strength=0.5 --w=1
python -m distill_jax.edit inpaint --student=runs/digits_encoder/s11_n0004 --mask=left --w=1
python -m distill_jax.edit roundtrip --workdir=runs/digits_encoder --out=roundtrip.png
"""

from collections.abc import Container, Sequence
from typing import Any

import jax
import numpy as np
import PIL.Image
from absl import flags
from etils import epath

from distill_jax.data import DATASETS, Dataset
from distill_jax.data.decoding import SUFFIXES, decode, read, read_array
from distill_jax.data.prompts import captions_of
from distill_jax.diffusion.pixels import normalise
from distill_jax.evaluation import chosen_data, pictures
from distill_jax.runtime import logging
from distill_jax.runtime.app import needed, run_app
from distill_jax.runtime.files import absolute, write_json
from distill_jax.runtime.registry import EVERYTHING, build, lookup
from distill_jax.sampling import loading
from distill_jax.sampling.conditioners import Requests
from distill_jax.sampling.editing import inpaint, psnr, roundtrip, sdedit, style
from distill_jax.sampling.student import Student


def pairs(
    workdir: epath.Path, allow: Container[str] = ()
) -> tuple[Student, list[tuple[Student, Student]]]:
    """Returns a workdir's teacher, and each encoder with the decoder of the same number of steps.

    The decoders are progressive stages. `allow` has the names that the networks may import: `load`.

    Raises:
      ValueError: when there is no such pair, or no network that was trained at all times.
    """
    found = [loading.load(stage, allow=allow) for stage in sorted(workdir.glob("s[0-9]*_*"))]
    decoders = {
        student.trained.num_steps: student
        for student in found
        if student.trained.uses_ddim and not student.trained.all_times
    }
    encoders = [student for student in found if not student.trained.sampler.decodes]
    teachers = [student for student in found if student.trained.all_times]
    both = [(e, decoders[n]) for e in encoders if (n := e.trained.num_steps) in decoders]
    if not both or not teachers:
        raise ValueError(
            f"{workdir} has {logging.counted(len(encoders), 'encoder stage')} and "
            f"{logging.counted(len(decoders), 'progressive stage')}, and no two of the same number "
            "of steps beside a teacher; train configs/digits_encoder.py"
        )
    return teachers[0], both


def compare(
    teacher: Student, both: Sequence[tuple[Student, Student]], x: np.ndarray, label: Requests
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Compares the round trips of every pair with those of the teacher's reverse DDIM and DDIM.

    Returns:
      One row for each number of steps, with the mean PSNR in dB over x. The list of images: x, then
      for each row the pair's round trip and the teacher's.
    """
    rows, seen = [], [x]
    for encoder, decoder in both:
        n = encoder.trained.num_steps
        mine = np.asarray(roundtrip(encoder, decoder, x, label))
        theirs = np.asarray(roundtrip(teacher, teacher, x, label, n))
        psnrs = [float(np.mean(psnr(x, y))) for y in (mine, theirs)]
        rows.append({"num_steps": n, "distilled": psnrs[0], "ddim": psnrs[1]})
        seen += [mine, theirs]
    return rows, seen


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    flags.DEFINE_string("student", None, "The sampler: a workdir, a stage or a final/ directory.")
    flags.DEFINE_string("encoder", None, "style: an encoder; by default reverse DDIM of --student.")
    flags.DEFINE_string("workdir", None, "roundtrip: a workdir with encoders and decoders.")
    flags.DEFINE_string("images", None, "A .npy file or a folder; by default the test split.")
    loading.define_flags()
    chosen_data.define_flags()
    flags.DEFINE_integer("source_label", None, "Class of the images.")
    flags.DEFINE_integer("target_label", None, "Class of the result; by default the source.")
    flags.DEFINE_string("source_prompt", None, "What the images show, for networks with captions.")
    flags.DEFINE_string("prompt", None, "What the result shows, for networks with captions.")
    flags.DEFINE_float("w", None, "Guidance strength of sampling.")
    flags.DEFINE_integer("num", 10, "Number of images.", lower_bound=1)
    flags.DEFINE_integer("num_steps", None, "Sampling steps, for networks that allow any number.")
    flags.DEFINE_float("strength", 0.5, "sdedit: time t to start from, a multiple of 1 / steps.")
    flags.DEFINE_string("mask", "left", "inpaint: region to draw: left, right, center or FILE.npy.")
    flags.DEFINE_integer("seed", 0, "Seed of the noise.", 0, 2**32 - 1)
    flags.DEFINE_string("out", "edit.png", "A .png, or a .npy array of the new images.")


def main(task: str) -> None:
    """Runs the task that the command line names."""
    work, out = lookup(TASKS, "task", task), absolute(flags.FLAGS.out)
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"--out={out} ends in neither .png nor .npy")
    *before, x = work(flags.FLAGS)
    if out.suffix == ".npy":
        with out.open("wb") as file:
            np.save(file, np.asarray(x))
    else:
        save_rows(out, [*before, x])
    logging.say(f"{task}: {out}")


def save_rows(path: epath.Path, rows: Sequence[np.ndarray], columns: int = 10) -> None:
    """Writes a grid where corresponding images of `rows` are in one column, `columns` wide."""
    stacked = np.stack([np.asarray(row) for row in rows])
    columns = min(columns, stacked.shape[1])
    blank = np.full_like(stacked[:, : -stacked.shape[1] % columns], -1.0)
    stacked = np.concatenate([stacked, blank], axis=1)
    parts = np.split(stacked, stacked.shape[1] // columns, axis=1)
    pictures.save_grid(path, np.concatenate(parts).reshape(-1, *stacked.shape[2:]), columns)


def _style(values: Any) -> Sequence[Any]:
    """Returns the images, and their translations to the target class."""
    student = _load(needed("student"), values)
    encoder = _load(values.encoder, values) if values.encoder else student
    x, label = _images(values, student)
    target = _target(values, student, None)
    if target is None and (student.num_classes or student.takes_prompts):
        flag = "--prompt" if student.takes_prompts else "--target_label"
        raise ValueError(f"{flag} is needed: what to make of the images")
    return x, style(encoder, student, x, label, target, values.w, values.num_steps)


def _sdedit_images(values: Any) -> Sequence[Any]:
    """Returns the images, and the results of SDEdit."""
    student = _load(needed("student"), values)
    x, label = _images(values, student)
    target = _target(values, student, label)
    n = int(student.sampler(values.num_steps).num_steps)
    if not 0 < values.strength <= 1:  # Also of nan.
        raise ValueError(f"--strength={values.strength:g}; expected a number above 0 and up to 1")
    start = round(values.strength * n)
    if abs(start - values.strength * n) > max(0.05, 0.005 * n):  # 0.33 is taken for 1 / 3.
        steps = ", ".join(f"{i / n:g}" for i in range(1, min(n, 32) + 1))
        raise ValueError(f"--strength={values.strength:g} is no k / {n}; choose among {steps}")
    key = jax.random.key(values.seed)
    return x, sdedit(student, key, x, start, target, values.w, values.num_steps)


def _inpaint_images(values: Any) -> Sequence[Any]:
    """Returns the images, the masked images, and the inpainted images."""
    student = _load(needed("student"), values)
    x, label = _images(values, student)
    target = _target(values, student, label)
    mask = read_mask(values.mask, student.image_shape)
    key = jax.random.key(values.seed)
    y = inpaint(student, key, x, mask, target, values.w, values.num_steps)
    return x, np.where(mask[..., None] > 0, 0.0, x), y


def _roundtrip_images(values: Any) -> Sequence[Any]:
    """Returns images and round trips of each pair and the teacher; writes the table of PSNRs."""
    workdir = needed("workdir", ": of a finished run with encoders and decoders")
    teacher, both = pairs(absolute(workdir), values.allow)
    x, label = _images(values, teacher)
    rows, seen = compare(teacher, both, x, label)
    titles = ("steps", "distilled encoder and decoder", "reverse DDIM and DDIM of the teacher")
    cells = [[row["num_steps"], *(f"{row[k]:.1f}" for k in ("distilled", "ddim"))] for row in rows]
    text = (
        f"Mean PSNR in dB of {len(x)} images encoded and decoded as their own class, w = 0.\n\n"
        + logging.table(titles, cells)
    )
    logging.show(text)
    out = absolute(values.out)
    out.with_suffix(".md").write_text(text + "\n")
    write_json(out.with_suffix(".json"), {"num": len(x), "rows": rows})
    return [images[:10] for images in seen]


TASKS = {
    "style": _style,
    "sdedit": _sdedit_images,
    "inpaint": _inpaint_images,
    "roundtrip": _roundtrip_images,
}


def _load(path: str, values: Any) -> Student:
    return loading.load(path, parts=loading.parts(values), allow=values.allow)


def _target(values: Any, student: Student, source: Requests) -> Requests:
    """Returns the prompt or label of the result; by default the source's.

    Raises:
      ValueError: for a prompt that the network does not take.
    """
    for name in ("prompt", "source_prompt"):
        if getattr(values, name) is not None and not student.takes_prompts:
            raise ValueError(f"--{name} is given, and this network has no captions")
    given: Requests = values.prompt if student.takes_prompts else values.target_label
    return source if given is None else given


def _images(values: Any, student: Student) -> tuple[np.ndarray, Requests]:
    """Returns images in [-1, 1], and their labels if the network takes labels."""
    if values.images:
        x, label = (
            read_images(absolute(values.images), student.image_shape[-1]),
            values.source_label,
        )
        if student.takes_prompts:
            return x[: values.num], _prompts(values, min(values.num, len(x)))
        if student.num_classes and label is None:
            raise ValueError("--source_label is needed with --images: the class they show")
        return x[: values.num], label
    num = values.num if values.source_label is None else None
    chosen = chosen_data.choose(student, values)
    data = build(DATASETS, "dataset", chosen, allow=EVERYTHING, makes=Dataset)
    source = data.images("test", num)
    x, label = normalise(source.x), source.label
    if student.takes_prompts:
        captions = captions_of(data, "test", num)
        return x[: values.num], [*captions[: values.num]]
    if values.source_label is not None:
        x, label = x[label == values.source_label], label[label == values.source_label]
    if not len(x):
        raise ValueError(f"no test image has --source_label={values.source_label}")
    return x[: values.num], label[: values.num] if student.num_classes else None


def _prompts(values: Any, num: int) -> list[str]:
    """Returns what `num` images of --images show."""
    if values.source_prompt is None and values.prompt is None:
        raise ValueError("--source_prompt is needed with --images: what they show")
    return [values.source_prompt if values.source_prompt is not None else values.prompt] * num


def read_images(path: epath.Path, channels: int) -> np.ndarray:
    """Reads images (n, h, w, c) in [-1, 1] from a .npy file, or a folder's pictures by name.

    Args:
      path: path of the file or folder; hidden pictures are ignored.
      channels: number of channels, 1 or 3, that pictures are converted to; arrays stay as they are.

    Raises:
      ValueError: unless they are images of one size in [-1, 1] or 0 .. 255.
    """
    x = read_array(path, "--images") if path.suffix == ".npy" else _read_pictures(path, channels)
    x = normalise(x if x.dtype == np.uint8 else x.astype(np.float32))
    if x.ndim != 4 or not x.size or not (np.abs(x) <= 1).all():
        raise ValueError(
            f"--images={path} holds {x.dtype} of shape {x.shape}; expected (n, h, w, c), uint8 or "
            "in [-1, 1]"
        )
    return x


def _read_pictures(path: epath.Path, channels: int) -> np.ndarray:
    """Reads the pictures of a folder as uint8 (n, h, w, c), sorted by name."""
    if not path.is_dir():
        raise ValueError(f"--images={path} is no folder; expected one with pictures, or a .npy")
    files = sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise ValueError(f"--images={path} has no pictures with a suffix of {', '.join(SUFFIXES)}")
    arrays = [decode(read(file), str(file)) for file in files]
    sizes = sorted({array.shape[:2] for array in arrays})
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for height, width in sizes[:5])
        raise ValueError(f"--images={path} has {len(files)} pictures, not all of one size: {shown}")
    if channels == 1:  # Luminance; a grey picture keeps its values.
        arrays = [np.asarray(PIL.Image.fromarray(x).convert("L"))[..., None] for x in arrays]
    return np.stack(arrays)


def read_mask(name: str, shape: Sequence[int]) -> np.ndarray:
    """Returns the mask (h, w) of an image: 1 where inpainting draws, 0 elsewhere.

    Args:
      name: left, right or center (a square of half the height), or a .npy file, not 0 to draw.
      shape: shape (h, w, c) of the image.

    Raises:
      ValueError: for another name or a file of another shape.
    """
    height, width = shape[:2]
    row, column = np.arange(height)[:, None], np.arange(width)[None]
    inside = (abs(2 * row + 1 - height) * 2 < height) & (abs(2 * column + 1 - width) * 2 < width)
    masks = {"left": column + 0 * row < width / 2, "right": column + 0 * row >= width / 2}
    masks["center"] = inside
    if name.endswith(".npy"):
        mask = read_array(absolute(name), "--mask") != 0
    elif name in masks:
        mask = masks[name]
    else:
        raise ValueError(f"--mask={name} is none of {', '.join(masks)} and no FILE.npy")
    if mask.shape != (height, width):
        raise ValueError(f"--mask={name} is of shape {mask.shape}; expected {(height, width)}")
    return mask.astype(np.float32)


if __name__ == "__main__":
    define_flags()
    run_app(main, "TASK")
