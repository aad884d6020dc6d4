"""Damages every file of a workdir in eight ways, and prints what the next command does.

    python benchmarks/corrupt_workdir.py               # an hour or more
    python benchmarks/corrupt_workdir.py --every=20    # one case of twenty

There are three workdirs of two stages: one stopped in the second stage, one stopped in its report,
and one complete. Each case damages one file of one of them, repeats the training, loads both
networks and reads the report. An outcome is right if it is one of these:

    noticed      one message for the user, and nothing was lost
    set aside    a line says so, and the results are those of an undamaged run
    harmless     the results are those of an undamaged run

Everything else is wrong: a traceback, 60 seconds without an end, or other results without a word.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import pathlib
import shutil
import signal
import tempfile
import traceback

import jax
import numpy as np
from etils import epath

from distill_jax.config import base, stage
from distill_jax.config import pipeline as stages
from distill_jax.evaluation import compare, pictures, report
from distill_jax.run import pipeline, plan
from distill_jax.runtime import logging
from distill_jax.runtime.app import is_message, message
from distill_jax.sampling.loading import load
from distill_jax.training.loop import StoppedError

NAMES = ("s00_teacher", "s01_n0001")
NOTICED, ASIDE, HARMLESS, WRONG = "noticed", "set aside", "harmless", "WRONG"
STOPPED, REPORTING, COMPLETE = "stopped", "reporting", "complete"
SECONDS = 60


def config():
    """Returns a config of two stages that take a second."""
    made = base()
    made.data.name = "mixture"
    made.model.update(name="mlp", width=8, blocks=1)
    made.batch_size, made.save_every, made.log_every = 8, 2, 1
    made.evaluate.update(w=(0.0,), num_samples=8)
    rates = {"learning_rate": 1e-3, "steps": 9}
    made.stages = stages(
        stage("teacher", "diffusion", num_steps=2, **rates),
        stage("n0001", "progressive", num_steps=1, **rates),
    )
    return made


def train(workdir, stop=lambda: False):
    """Trains and reports as the command does."""
    run = plan.make(config(), epath.Path(workdir))
    pipeline.run(run, stop)
    data, settings = run.config.data.to_dict(), run.config.evaluate.to_dict()
    compare.write_report(run.workdir, data, settings, stop, run.layout, run.parts, run.allow)


def results(workdir):
    """Returns the weights of both stages as bytes, and the rows of the report without times.

    Raises:
      AssertionError: if the text of the report has other rows, or a picture is not whole.
    """
    found, workdir = [], epath.Path(workdir)
    for name in NAMES:
        leaves = jax.tree.leaves(load(workdir / name).params)
        found += [np.asarray(leaf).tobytes() for leaf in leaves]
        assert pictures.is_whole(workdir / name / "grid.png")
    rows = json.loads((workdir / "report.json").read_text())["rows"]
    assert report.rows_table(rows) in (workdir / "report.md").read_text()
    assert pictures.is_whole(workdir / "report.png")
    return found, [{k: v for k, v in row.items() if k != "seconds_per_image"} for row in rows]


def write_templates(folder):
    """Trains the three workdirs."""

    def stopped(when):
        def stop():
            return when(folder / "now")

        with contextlib.suppress(InterruptedError, StoppedError):
            train(folder / "now", stop)

    stopped(lambda now: (now / NAMES[1] / "states" / "2").exists())
    assert not (folder / "now" / NAMES[1] / "final").exists()
    shutil.copytree(folder / "now", folder / STOPPED)
    stopped(lambda now: (now / "report.rows.json").exists())
    assert (folder / "now" / "report.rows.json").exists()
    shutil.copytree(folder / "now", folder / REPORTING)
    train(folder / "now")
    shutil.copytree(folder / "now", folder / COMPLETE)
    shutil.rmtree(folder / "now")


def flip(path):
    content = bytearray(path.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)


def become_directory(path):
    path.unlink()
    path.mkdir()


def become_another(path):
    """Replaces a file by that of the other stage, or by another file of its folder."""
    old, new = NAMES if NAMES[0] in path.parts else NAMES[::-1]
    other = pathlib.Path(*(new if part == old else part for part in path.parts))
    if other == path or not other.is_file():
        files = sorted(each for each in path.parent.iterdir() if each.is_file() and each != path)
        if not files:
            return
        other = files[0]
    shutil.copy(other, path)


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "emptied": lambda path: path.write_bytes(b""),
    "byte flipped": flip,
    "NULs": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "[]": lambda path: path.write_text("[]"),
    "deleted": lambda path: path.unlink(),
    "a directory": become_directory,
    "another's": become_another,
}


def cases(folder):
    """Returns (template, file, kind of damage) of every case."""
    files = [
        (name, path.relative_to(folder / name))
        for name in (STOPPED, REPORTING, COMPLETE)
        for path in sorted((folder / name).rglob("*"))
        if path.is_file()
    ]
    return [(*file, damage) for file in files for damage in DAMAGES]


def _too_long(*_):
    raise TimeoutError(f"no end after {SECONDS} s")


def outcome(folder, case, expected):
    """Returns what the training does after the damage, and its message."""
    name, file, damage = case
    workdir = folder / "case"
    shutil.copytree(folder / name, workdir)
    said = io.StringIO()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        DAMAGES[damage](workdir / file)
        with contextlib.redirect_stdout(said):
            train(workdir)
            found = results(workdir)
    except Exception as error:
        right = isinstance(error, (ValueError, KeyError, OSError)) and is_message(error)
        text = message(error) if right else traceback.format_exc()
        one = "\n" not in text or "of another config" in text or "of other data" in text
        happened = NOTICED if right and one and not isinstance(error, TimeoutError) else WRONG
    else:
        lines = [line for line in said.getvalue().splitlines() if "damaged" in line]
        text, same = "; ".join(lines), _equal(found, expected)
        happened = (ASIDE if lines else HARMLESS) if same else WRONG
        text += "" if same else " other results"
    finally:
        signal.alarm(0)
        shutil.rmtree(workdir)
    return happened, text.replace(f"{workdir}/", "")


def _equal(found, expected):
    return found[0] == expected[0] and all(
        one.keys() == two.keys() and all(one[key] == two[key] for key in one)
        for one, two in zip(found[1], expected[1], strict=True)
    )


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--every", type=int, default=1, help="run one case of so many")
    every = parser.parse_args().every
    rows, count = [], collections.Counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        with contextlib.redirect_stdout(io.StringIO()):
            write_templates(folder)
        expected = results(folder / COMPLETE)
        for case in cases(folder)[::every]:
            happened, text = outcome(folder, case, expected)
            count[happened] += 1
            rows.append((*case, happened, text.strip() or "-"))
            if os.environ.get("VERBOSE") or happened == WRONG:
                logging.show(f"{' '.join(map(str, case))}: {happened}: {text}")
    print(logging.table(("workdir", "file", "damage", "outcome", "message"), rows))
    print(f"\n{len(rows)} cases: " + ", ".join(f"{v} {k}" for k, v in sorted(count.items())))
    return count[WRONG]


if __name__ == "__main__":
    raise SystemExit(main())
