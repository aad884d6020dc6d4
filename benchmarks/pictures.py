"""Draws the pictures of README and docs/ from finished runs of seed 0, and those that need none.

python benchmarks/pictures.py                   # those whose run is finished in runs/, into docs/
python benchmarks/pictures.py --root=/tmp/runs --out=/tmp --only=digits_grids,digits_report
python benchmarks/pictures.py --only=explained  # all whose names begin with that word
"""

import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import textwrap

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from distill_jax.diffusion.pixels import to_uint8
from distill_jax.evaluation import compare, figures, sheets
from distill_jax.runtime import logging
from distill_jax.sampling.loading import load
from distill_jax.sampling.steps import predictions

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # For the file beside this one.

from benchmarks.explained import EXPLAINED  # noqa: E402 - it needs the path above.
from benchmarks.pages import PAGES  # noqa: E402 - as above.

FONT = pathlib.Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
STRENGTHS = (0.0, 1.0, 2.0, 4.0)
PROMPTS = [
    "a red circle above a blue square",
    "a cyan triangle left of a purple cross",
    "a yellow cross below a green circle",
    "a purple triangle right of a red square",
    "a green square",
    "a blue triangle",
]
# Names of emoji: the first six are in no training caption.
NAMES = [
    "ferry",
    "guatemala flag",
    "cupcake",
    "white exclamation mark ornament",
    "person with pouting face",
    "grinning face",
    "red apple",
    "heavy black heart",
    "cat face",
    "slice of pizza",
]
# In pixels: the smallest side of an image, the gap between images, the height of letters.
SIDE, GAP, LETTER = 48, 6, 26


def same_noise(workdir):
    """Returns samples (strengths, classes, h, w, c) by title, all from the same noise.

    They are samples of the teacher, in all of its steps and in one, and of the last student.
    """
    student = load(workdir)
    teacher = load(compare.root(student).directory)
    columns = min(student.num_classes, 10)
    steps = (("teacher", teacher, None), ("teacher", teacher, 1), ("student", student, None))
    found = {}
    for name, network, num_steps in steps:
        rows = [
            network.sample(jax.random.key(0), columns, np.arange(columns), w, num_steps)
            for w in STRENGTHS
        ]
        count = logging.counted(int(network.sampler(num_steps).num_steps), "step")
        calls = logging.counted(network.calls(STRENGTHS[0], num_steps), "network call")
        found[f"{name}: {count}, {calls}"] = np.stack(rows)
    return found


def sheet(panels, rows, columns):
    """Draws panels (rows, columns, h, w, c) side by side, with titles and row and column names.

    Every image is enlarged by a whole factor, without smoothing.
    """
    font = ImageFont.truetype(FONT, LETTER)
    height, width = next(iter(panels.values())).shape[2:4]
    factor = max(1, SIDE // height)
    across, down = width * factor + GAP, height * factor + GAP
    left, top = LETTER + max(int(font.getlength(name)) for name in rows), 3 * LETTER
    panel = across * len(columns) + LETTER
    picture = Image.new("RGB", (left + panel * len(panels), top + down * len(rows)), "white")
    draw = ImageDraw.Draw(picture)
    for j, name in enumerate(rows):
        draw.text((LETTER // 2, top + down * j + down // 2), name, "black", font, anchor="lm")
    for i, (title, x) in enumerate(panels.items()):
        start = left + panel * i
        middle = start + across * len(columns) // 2
        draw.text((middle, LETTER // 4), title, "black", font, anchor="mt")
        for k, name in enumerate(columns):
            place = (start + across * k + (across - GAP) // 2, top - GAP)
            draw.text(place, name, "dimgray", font, anchor="mb")
        tiles = to_uint8(x).repeat(factor, axis=2).repeat(factor, axis=3)
        for j, k in np.ndindex(len(rows), len(columns)):
            tile = np.broadcast_to(tiles[j, k], (*tiles.shape[2:4], 3))
            picture.paste(Image.fromarray(tile), (start + across * k, top + down * j))
    return picture


def digits_grids(workdir, out):
    panels = same_noise(workdir)
    columns = next(iter(panels.values())).shape[1]
    sheet(panels, [f"w = {w:g}" for w in STRENGTHS], [str(k) for k in range(columns)]).save(out)


def digits_steps(workdir, out):
    """Draws what the teacher predicts in its steps above the student's only call, as a .gif."""
    student = load(workdir)
    teacher, w = load(compare.root(student).directory), 2.0
    labels = np.arange(min(student.num_classes, 10))
    given = jax.random.key(0), len(labels), labels, w
    steps, below = predictions(teacher, *given), np.asarray(student.sample(*given))
    calls, frames = teacher.calls(w) // len(steps), []
    for k in (1, *range(4, len(steps) + 1, 4)):
        names = (
            f"teacher, {k * calls} of {teacher.calls(w)} network calls",
            f"student, {logging.counted(student.calls(w), 'network call')}",
        )
        frames.append(sheets.sheet([list(steps[k - 1][1]), list(below)], names=names, side=64))
    sheets.save(out, frames)


def digits_report(workdir, out):
    content = json.loads((workdir / "report.json").read_text())
    figures.quality(content).savefig(out, dpi=110)


def prompted(prompts):
    """Returns a function that draws the same noise through teacher and students, above prompts."""

    def draw(workdir, out):
        places = {stage.name: load(stage) for stage in sorted(workdir.glob("s[0-9]*_*"))}
        teacher = places.pop("s00_teacher")
        few = [student for student in places.values() if not student.trained.all_times]
        students = [student for student in few if student.sampler().num_steps <= 4]
        networks = [(teacher, None), (teacher, 1), *((student, None) for student in students)]
        figure = Figure(figsize=(1.25 * len(prompts) + 1.2, 1.12 * len(networks) + 0.7), dpi=80)
        axes = figure.subplots(len(networks), len(prompts))
        for row, (network, num_steps) in zip(axes, networks, strict=True):
            w = None if network.trained.guidance.fixed_w else 2.0  # Students have w in the weights.
            x = to_uint8(np.asarray(network.sample(1, len(prompts), prompts, w, num_steps)))
            name = "teacher" if network is teacher else "student"
            count = logging.counted(int(network.sampler(num_steps).num_steps), "step")
            row[0].set_ylabel(f"{name}\n{count}", fontsize=11)
            for axis, picture in zip(row, x, strict=True):
                axis.imshow(picture, interpolation="nearest")
                axis.set(xticks=[], yticks=[])
        for axis, prompt in zip(axes[-1], prompts, strict=True):
            axis.set_xlabel(textwrap.fill(prompt, 14), fontsize=9)
        figure.tight_layout(pad=0.4)
        figure.savefig(out)

    return draw


def mixture_sid(workdir, out):
    shutil.copyfile(workdir / "s02_sid" / "grid.png", out)


def edited(task, *flags):
    """Returns a function that draws a picture with distill_jax.edit; {run} is the workdir."""

    def make(workdir, out):
        with tempfile.TemporaryDirectory() as folder:  # A round trip also writes a table.
            path = pathlib.Path(folder) / out.name
            given = [flag.format(run=workdir) for flag in flags]
            command = [sys.executable, "-m", "distill_jax.edit", task, *given, f"--out={path}"]
            subprocess.run(command, cwd=ROOT, check=True)
            shutil.copyfile(path, out)

    return make


def cifar10_methods(workdir, out):
    """Draws quality against network calls, measured by benchmarks/curves.py in minutes."""
    data_dir = json.loads((workdir / "config.json").read_text())["data"]["data_dir"]
    options = [f"--workdir={workdir}", f"--data_dir={data_dir}", f"--out={out}"]
    script = str(ROOT / "benchmarks" / "curves.py")
    subprocess.run([sys.executable, script, *options], cwd=ROOT, check=True)


def shapes_edits(workdir, out):
    """Draws edits by prompt, see benchmarks/edits.py."""
    script = str(ROOT / "benchmarks" / "edits.py")
    options = [f"--workdir={workdir}", f"--picture={out}"]
    subprocess.run([sys.executable, script, *options], cwd=ROOT, check=True)


STYLE = ("--encoder={run}/s07_e0001", "--student={run}/s13_n0001", "--source_label=3")
# The config of the run, "" for none, and the function that draws it, for each picture.
PICTURES = {
    "digits_grids": ("digits_guided", digits_grids),
    "digits_report": ("digits_guided", digits_report),
    "digits_steps": ("digits_guided", digits_steps),
    "digits_style": ("digits_encoder", edited("style", *STYLE, "--target_label=8", "--w=1")),
    "digits_roundtrip": ("digits_encoder", edited("roundtrip", "--workdir={run}", "--num=360")),
    "shapes_grids": ("shapes_guided", prompted(PROMPTS)),
    "shapes_edits": ("shapes_guided", shapes_edits),
    "emoji_sid_lsg": ("emoji_sid_lsg", prompted(NAMES)),
    "cifar10_methods": ("cifar10_methods", cifar10_methods),
    "mixture_sid": ("mixture_sid", mixture_sid),
    **{name: ("", draw) for name, draw in {**EXPLAINED, **PAGES}.items()},
}


def file_of(name):
    """Returns the name of a picture's file in docs/."""
    return f"{name}{'.gif' if name == 'digits_steps' else '.png'}"


def draw(names, options):
    """Draws pictures by name; those whose run is missing are left, and the run is named."""
    for name in names:
        config, make = PICTURES[name]
        workdir, out = (pathlib.Path(path).absolute() for path in (options.root, options.out))
        workdir, out = workdir / config, out / file_of(name)
        if not config:
            make(out)
            print(out)
            continue
        if (workdir / "report.json").exists():
            make(workdir, out)
            print(out)
            continue
        train = f"python -m distill_jax.main --config=configs/{config}.py --workdir={workdir}"
        print(f"{out} is left as it is, because its run is not finished: {train}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=str(ROOT / "runs"))
    parser.add_argument("--out", default=str(ROOT / "docs"))
    parser.add_argument("--only", default=",".join(PICTURES))
    options = parser.parse_args()
    for given in options.only.split(","):
        names = [name for name in PICTURES if name == given or name.startswith(f"{given}_")]
        if not names:
            parser.error(f"--only={given} is none of {', '.join(PICTURES)}, nor their first word")
        draw(names, options)


if __name__ == "__main__":
    main()
