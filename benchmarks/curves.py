"""Measures the finished stages of cifar10_methods against a part of the data: table and figure.

python benchmarks/curves.py --workdir=runs/cifar10_methods --data_dir=DIR
python benchmarks/curves.py --workdir=runs/cifar10_methods --data_dir=DIR --watch   # as they finish

The report of the run compares with all 50,000 images, whose features take a CPU a thousand seconds.
Rows that were measured before are kept in WORKDIR/curves.jsonl.
"""

import argparse
import json
import pathlib
import time

from etils import epath
from matplotlib.figure import Figure

from distill_jax.evaluation import compare
from distill_jax.evaluation.protocols import make_evaluator
from distill_jax.runtime import logging
from distill_jax.runtime.sharding import make_layout
from distill_jax.sampling.loading import describe

W = (0.0, 1.0)
STEPS = (16, 8, 4, 2, 1)  # Of the teacher.
SPLITS = ("train[:5000]", "test[:2000]")
METHODS = {"sid": "SiD", "dmd2": "DMD2", "guided": "guided", "progressive": "progressive"}
MEASURES = ("FD-efflite0", "MIND-efflite0", "accuracy", "precision", "recall")


def entries(stage, teacher, layout):
    """Returns the rows of a stage: the teacher at STEPS, a student at its own steps."""
    if stage == teacher.directory.parent:
        pairs = [(w, n) for n in STEPS for w in W]
        return [compare.Entry("teacher", "teacher", teacher, w, n) for w, n in pairs]
    student = describe(stage, layout)
    return [row for row in compare.entries(teacher, [student], W) if row.role == "student"]


def measured(workdir, evaluator, num, watch):
    """Yields the rows of all finished stages; with `watch`, waits for those that are not."""
    layout, place = make_layout({"data": -1}), workdir / "curves.jsonl"
    known = [json.loads(line) for line in place.open()] if place.exists() else []
    yield from known
    done = {(row["stage"], row["num_steps"], row["w"]) for row in known}
    stages = sorted(json.loads((workdir / "config.json").read_text())["stages"])
    teacher = describe(workdir / stages[0], layout)
    for stage in (workdir / name for name in stages):
        while watch and not (stage / "final" / "manifest.json").exists():
            time.sleep(5)
        if not (stage / "final" / "manifest.json").exists():
            continue
        todo = [
            entry
            for entry in entries(stage, teacher, layout)
            if (stage.name, entry.num_steps, entry.w or 0.0) not in done
        ]
        for row in compare.compare(evaluator, todo, num):
            with place.open("a") as file:
                file.write(json.dumps(row) + "\n")
            yield row


def method_of(row):
    """Returns the method of a row, as the figure and the table name it."""
    names = [name for key, name in METHODS.items() if key in row["stage"]]
    return names[0] if row["role"] == "student" and names else "teacher"


def table(rows):
    """Returns the rows as Markdown."""
    cells = [
        (
            method_of(r),
            r["num_steps"],
            r["calls"],
            f"{r['w']:g}",
            *(f"{r[m]:.3g}" for m in MEASURES),
        )
        for r in sorted(
            rows, key=lambda r: (r["w"], r["role"] == "student", r["stage"], -r["calls"])
        )
    ]
    return logging.table(("method", "steps", "calls", "w", *MEASURES), cells)


def draw(rows, out):
    """Draws the first three measures against the number of network calls."""
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    axes = figure.subplots(1, 3)
    kinds = list(dict.fromkeys((method_of(row), row["w"]) for row in rows))
    for axis, measure in zip(axes, MEASURES, strict=False):
        for i, (method, w) in enumerate(kinds):
            mine = [row for row in rows if (method_of(row), row["w"]) == (method, w)]
            mine.sort(key=lambda row: row["calls"])
            style = "--" if method == "teacher" else "-"
            calls, values = zip(*((row["calls"], row[measure]) for row in mine), strict=True)
            axis.plot(calls, values, style, marker="osDv^P*X"[i % 8], label=f"{method}, w = {w:g}")
        axis.set(xscale="log", xlabel="network calls per image", title=measure)
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=9)
    figure.savefig(out, dpi=90)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--watch", action="store_true")
    parser.add_argument("--out", help="write the figure to this PNG")
    options = parser.parse_args()
    data = {"name": "tfds", "dataset": "cifar10", "size": 32, "num_labels": 10, "splits": SPLITS}
    evaluator = make_evaluator({**data, "data_dir": options.data_dir}, "efflite0")
    print(json.dumps(evaluator.summary()), flush=True)
    workdir, rows = epath.Path(pathlib.Path(options.workdir).absolute()), []
    for row in measured(workdir, evaluator, options.num, options.watch):
        rows.append(row)
        print(method_of(row), row, flush=True)
    print(table(rows))
    if options.out:
        draw(rows, options.out)


if __name__ == "__main__":
    main()
