"""Compares every method on one teacher, for the table of docs/methods.md.

python benchmarks/methods.py                                  # trains runs/digits_methods first
python benchmarks/methods.py --workdir=/tmp/methods --out=/tmp/methods.md

CPU-seconds are those of all updates from the teacher on, compilation included, of all cores.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
from etils import epath

from distill_jax import load
from distill_jax.diffusion.resize import bicubic
from distill_jax.diffusion.trained import Renoise
from distill_jax.evaluation.protocols import make_evaluator
from distill_jax.runtime import logging
from distill_jax.sampling.batched import Draw

ROOT = pathlib.Path(__file__).parent.parent
NAMES = {
    "progressive": "progressive distillation",
    "guided": "guided distillation, rounds",
    "consistency": "consistency distillation",
    "scm": "sCM",
    "meanflow": "MeanFlow",
    "boot": "BOOT",
    "sid": "SiD",
    "sid_lsg": "SiD-LSG, kappa 1.5",
    "dmd2": "DMD2",
    "decoupled_dmd": "Decoupled DMD",
    "swd": "SwD, resolutions 4, 8",
    "swd_full": "SwD, resolutions 8, 8",
}


def cpu_seconds(stage):
    """Returns the CPU-seconds of the updates of one stage."""
    lines = (stage / "scalars.jsonl").read_text().splitlines()
    return sum(json.loads(line)["cpu_seconds"] for line in lines)


def lineage(stage):
    """Yields a stage and the stages that it depends on, without the teacher's."""
    while stage.name != "s00_teacher":
        yield stage
        parent = json.loads((stage / "final" / "manifest.json").read_text())["lineage"]["parent"]
        stage = (stage / "final" / parent).resolve().parent


def bicubic_only(workdir, num):
    """Returns the row of only SwD's first step, its images of 4 pixels enlarged to 8."""
    student = load(next(workdir.glob("s*_swd")))
    whole = student.trained.sampler
    draw, side = Draw(num), student.shape[0]
    small = student.with_sampler(Renoise(whole.times[:1], whole.resolutions[:1]))
    draw(small, None)
    x, seconds = draw(small, None)
    x = np.clip(np.asarray(jax.jit(lambda x: bicubic(x, side))(x)), -1, 1)
    evaluator = make_evaluator({"name": "digits"})
    row = evaluator.measure(x, draw.labels(student), None)
    return {
        **row,
        "w": student.trained.guidance.fixed_w,
        "num_steps": 1,
        "calls": 1,
        "seconds_per_image": seconds / num,
    }


def table(workdir):
    """Returns the Markdown table."""
    report = json.loads((workdir / "report.json").read_text())
    name, num, rows = report["name"], report["made_of"]["num_samples"], []

    def add(title, row, cpu):
        shown = (row[name], row["accuracy"], row["recall"])
        time = f"{row['seconds_per_image'] * 1e6:.0f}"
        steps, w = row["num_steps"], f"{row['w']:g}"
        rows.append((title, steps, w, row["calls"], *(f"{v:.3f}" for v in shown), cpu, time))

    stages = {path.name: path for path in workdir.glob("s[0-9]*_*")}
    for row in report["rows"]:
        stage = stages[row["stage"]]
        kind = re.sub(r"\d{4}$", "", stage.name.partition("_")[2])
        if row["role"] == "student" and kind in NAMES and row["num_steps"] <= 4:
            add(NAMES[kind], row, f"{sum(map(cpu_seconds, lineage(stage))):.0f}")
        elif row["sampler"] == "teacher" and row["num_steps"] in (1, 2, 4, 64):
            add("teacher, DDIM", row, f"{cpu_seconds(stage):.0f}")
    add("SwD's first step, enlarged (control)", bicubic_only(workdir, num), "-")
    titles = ("method", "steps", "w", "calls", name, "accuracy", "recall")
    return logging.table((*titles, "training CPU-seconds", "microseconds per image"), rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", default=str(ROOT / "runs" / "digits_methods"))
    parser.add_argument("--out", help="also write the table to this file")
    options = parser.parse_args()
    workdir = epath.Path(options.workdir)
    if not (workdir / "report.json").exists():
        config = ROOT / "configs" / "digits_methods.py"
        command = [sys.executable, "-m", "distill_jax.main", f"--config={config}"]
        subprocess.run([*command, f"--workdir={workdir}"], cwd=ROOT, check=True)
    text = table(workdir)
    print(text)
    if options.out:
        pathlib.Path(options.out).write_text(text + "\n")


if __name__ == "__main__":
    main()
