"""Edits images with finished networks: style transfer, image to image, inpainting, round trips.

python -m distill_jax.edit style --encoder=runs/digits_encoder/s05_e0004 \
    --student=runs/digits_encoder/s11_n0004 --source-label=3 --target-label=8 --out=style.png
python -m distill_jax.edit img2img --student=runs/digits_encoder/s11_n0004 --strength=0.5 --w=1
python -m distill_jax.edit inpaint --student=runs/digits_encoder/s11_n0004 --mask=left --w=1
python -m distill_jax.edit roundtrip --workdir=runs/digits_encoder --out=roundtrip.png
"""

from collections.abc import Container, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from etils import epath

from distill_jax.data import DATASETS, Dataset
from distill_jax.data.prompts import captions_of
from distill_jax.diffusion.pixels import normalise
from distill_jax.evaluation import chosen_data, pictures
from distill_jax.evaluation.edited_files import read_images, read_mask
from distill_jax.runtime import logging
from distill_jax.runtime.app import needed, run_app
from distill_jax.runtime.files import absolute, write_json
from distill_jax.runtime.registry import EVERYTHING, build, lookup
from distill_jax.sampling import loading
from distill_jax.sampling.conditioners import Requests
from distill_jax.sampling.editing import psnr, roundtrip, style
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
    flags.DEFINE_string(
        "encoder",
        None,
        "style: an encoder; by default reverse DDIM of --student. img2img: an encoder, which takes "
        "the noise from the image; by default it is random.",
    )
    flags.DEFINE_string("workdir", None, "roundtrip: a workdir with encoders and decoders.")
    flags.DEFINE_string("images", None, "A .npy file or a folder; by default the test split.")
    loading.define_flags()
    chosen_data.define_flags()
    flags.DEFINE_integer("source_label", None, "Class of the images.")
    flags.DEFINE_integer("target_label", None, "Class of the result; by default the source.")
    flags.DEFINE_string("source_prompt", None, "What the images show, for networks with captions.")
    flags.DEFINE_string("prompt", None, "What the result shows, for networks with captions.")
    flags.DEFINE_string("negative_prompt", None, "Prompt to be guided away from, for teachers.")
    flags.DEFINE_float("w", None, "Guidance strength of sampling.")
    flags.DEFINE_integer("num", 10, "Number of images.", lower_bound=1)
    flags.DEFINE_integer("num_steps", None, "Sampling steps, for networks that allow any number.")
    flags.DEFINE_float("strength", 0.5, "img2img: time t to start from, one of the student's.")
    flags.DEFINE_string(
        "mask",
        "left",
        "inpaint: region to draw: left, right, top, bottom, center, FILE.npy or .png.",
    )
    flags.DEFINE_integer("seed", 0, "Seed of the noise.", 0, 2**32 - 1)
    flags.DEFINE_string("out", "edit.png", "A .png, or a .npy array of the new images.")


def main(task: str) -> None:
    """Runs the task that the command line names."""
    work, out = lookup(TASKS, "task", task), absolute(flags.FLAGS.out)
    if out.suffix not in (".png", ".npy"):
        raise ValueError(f"--out={out} ends in neither .png nor .npy")
    done = work(flags.FLAGS)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".npy":
        with out.open("wb") as file:
            np.save(file, np.asarray(done.rows[-1]))
    else:
        save_rows(out, done.rows, facts={"task": task, **done.facts})
    logging.say(f"{task}: {out}")


class Done(NamedTuple):
    """The result of a task: rows of images, the last of which are new, and facts about them."""

    rows: Sequence[np.ndarray]
    facts: Mapping[str, str] = {}


def save_rows(
    path: epath.Path,
    rows: Sequence[np.ndarray],
    columns: int = 10,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Writes a grid where corresponding images of `rows` are in one column, `columns` wide.

    `facts` are written into the file, see pictures.save_grid.
    """
    stacked = np.stack([np.asarray(row) for row in rows])
    columns = min(columns, stacked.shape[1])
    blank = np.full_like(stacked[:, : -stacked.shape[1] % columns], -1.0)
    stacked = np.concatenate([stacked, blank], axis=1)
    parts = np.split(stacked, stacked.shape[1] // columns, axis=1)
    pictures.save_grid(
        path, np.concatenate(parts).reshape(-1, *stacked.shape[2:]), columns, facts=facts
    )


def _style(values: Any) -> Done:
    """Returns the images, and their translations to the target class."""
    student = _student(values)
    encoder = _load(values.encoder, values) if values.encoder else student
    x, label = _images(values, student, encoded=True)
    target = _target(values, student, None)
    if target is None and (student.num_classes or student.takes_prompts):
        flag = "--prompt" if student.takes_prompts else "--target_label"
        raise ValueError(f"{flag} is needed: what to make of the images")
    y = style(encoder, student, x, label, target, values.w, values.num_steps)
    return Done((x, np.asarray(y)), _facts(values, student, target, label, encoder))


def _img2img(values: Any) -> Done:
    """Returns the images, and the results of SDEdit, or of encoding up to a time."""
    student, encoder = _student(values), None
    x, label = _images(values, student, encoded=bool(values.encoder))
    target, steps = _target(values, student, label), values.num_steps
    if values.encoder:
        encoder = _load(values.encoder, values)
        if encoder.trained.all_times:
            encoder = encoder.with_sampler(encoder.sampler(steps))
            steps = steps if student.trained.all_times else None
        student = student.with_sampler(student.sampler(steps))
        start = _start(values.strength, student)
        y = student.translate(encoder, x, label, target, values.w, start)
    else:
        start = _start(values.strength, student, steps)
        y = student.img2img(values.seed, x, start, target, values.w, steps)
    facts = _facts(values, student, target, label, encoder, strength=f"{values.strength:g}")
    return Done((x, np.asarray(y)), facts)


def _start(strength: float, student: Student, num_steps: int | None = None) -> int:
    """Returns the number of network calls from t = strength on.

    Raises:
      ValueError: for a strength that is none of the sampler's times.
    """
    if not 0 < strength <= 1:  # Also of nan.
        raise ValueError(f"--strength={strength:g}; expected a number above 0 and up to 1")
    sampler = student.sampler(num_steps)
    times = [*sampler.times][::-1]
    nearest = min(range(len(times)), key=lambda i: abs(times[i] - strength))
    if abs(times[nearest] - strength) > max(0.05 / len(times), 0.005):  # 0.33 is taken for 1 / 3.
        steps = ", ".join(f"{t:.3g}" for t in times[:32])
        raise ValueError(
            f"--strength={strength:g} is no time of the student's {len(times)} steps; choose among "
            f"{steps}"
        )
    return nearest + 1


def _inpaint_images(values: Any) -> Done:
    """Returns the images, the masked images, and the inpainted images."""
    student = _student(values)
    x, label = _images(values, student)
    target = _target(values, student, label)
    mask = read_mask(values.mask, student.image_shape)
    y = student.inpaint(values.seed, x, mask, target, values.w, values.num_steps)
    rows = (x, np.where(mask[..., None] > 0, 0.0, x), np.asarray(y))
    return Done(rows, _facts(values, student, target, mask=values.mask))


def _facts(
    values: Any,
    student: Student,
    target: Requests,
    source: Requests = None,
    encoder: Student | None = None,
    **more: str,
) -> dict[str, str]:
    """Returns how images were made, as texts: the student's facts, seed, prompts or labels."""
    free = student.trained.all_times or not student.trained.sampler.on_grid
    found = pictures.made_by(student, values.w, values.num_steps if free else None)
    if encoder is not None:
        more["encoder"] = pictures.made_by(encoder, None)["weights"]
    named = "prompt" if student.takes_prompts else "label"
    asked = {named: target, f"source_{named}": source, "negative_prompt": values.negative_prompt}
    texts = {name: _text(each) for name, each in asked.items() if each is not None}
    made = {name: str(fact) for name, fact in found.items()}
    return {**made, "seed": str(values.seed), **more, **texts}


def _text(requests: Requests) -> str:
    """Returns prompts or labels, one in each line; one line if they are equal."""
    if isinstance(requests, (list, np.ndarray)):
        lines = [str(each) for each in requests]
        return "\n".join(lines if len(set(lines)) > 1 else lines[:1])
    return str(requests)


def _roundtrip_images(values: Any) -> Done:
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
    return Done([images[:10] for images in seen])


TASKS = {
    "style": _style,
    "img2img": _img2img,
    "sdedit": _img2img,
    "inpaint": _inpaint_images,
    "roundtrip": _roundtrip_images,
}


def _load(path: str, values: Any) -> Student:
    return loading.load(path, parts=loading.parts(values), allow=values.allow)


def _student(values: Any) -> Student:
    """Returns the network of --student, guided away from --negative_prompt."""
    student = _load(needed("student"), values)
    if values.negative_prompt is not None:
        return student.with_negative_prompt(values.negative_prompt)
    return student


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


def _images(values: Any, student: Student, encoded: bool = False) -> tuple[np.ndarray, Requests]:
    """Returns images in [-1, 1], and their labels or prompts if the network takes any."""
    if values.images:
        x = read_images(absolute(values.images), student.image_shape[-1])[: values.num]
        if student.takes_prompts:
            return x, _prompts(values, len(x), encoded)
        if student.num_classes and values.source_label is None:
            raise ValueError("--source_label is needed with --images: the class they show")
        return x, values.source_label
    num = values.num if values.source_label is None else None
    chosen = chosen_data.choose(student, values)
    data = build(DATASETS, "dataset", chosen, allow=EVERYTHING, makes=Dataset)
    source = data.images("test", num)
    x, label = normalise(source.x), source.label
    if student.takes_prompts:
        x = x[: values.num]
        if values.source_prompt is not None:
            return x, [values.source_prompt] * len(x)
        return x, [*captions_of(data, "test", num)[: values.num]]
    if values.source_label is not None:
        x, label = x[label == values.source_label], label[label == values.source_label]
    if not len(x):
        raise ValueError(f"no test image has --source_label={values.source_label}")
    return x[: values.num], label[: values.num] if student.num_classes else None


def _prompts(values: Any, num: int, encoded: bool) -> list[str]:
    """Returns what `num` images of --images show; images that are not encoded need no prompt."""
    given = values.source_prompt
    if given is None and (encoded or values.prompt is None):
        raise ValueError(
            "--source_prompt is needed with --images: what they show, or '' to encode them without"
        )
    return [values.prompt if given is None else given] * num


if __name__ == "__main__":
    define_flags()
    run_app(main, "TASK")
