"""Compares the students of configs/digits_dedistill.py, for the table of docs/results.md.

python benchmarks/dedistill.py                        # trains runs/digits_dedistill* first
python benchmarks/dedistill.py --seeds=0,1,2 --root=/tmp/runs

The student of the digits 0 to 8 learns the 9. FD-digits of 0 to 8 compares with images of those.
"""

import argparse
import pathlib
import subprocess
import sys

import numpy as np

from distill_jax import load
from distill_jax.data.digits import digits
from distill_jax.diffusion.pixels import normalise
from distill_jax.metrics.features import Classifier
from distill_jax.metrics.frechet import frechet_distance, moments
from distill_jax.runtime import logging

ROOT = pathlib.Path(__file__).parent.parent
NUM, NEW = 2000, 9


def run(size, seed, root):
    """Trains a size of the config at a seed, unless that is done; returns its workdir."""
    workdir, nine = root / f"digits_dedistill_{size}_{seed}", root / f"digits_dedistill_full_{seed}"
    command = [sys.executable, "-m", "distill_jax.main", f"--workdir={workdir}"]
    command += [f"--config={ROOT / 'configs' / 'digits_dedistill.py'}:{size}"]
    command += [f"--config.seed={seed}"]
    if size == "learn":
        student, denoiser = nine / "s01_sid", nine / "s02_dedistill"
        for name, teacher in (("s00_learned", denoiser), ("s01_plain", student)):
            place = f"--config.stages.{name}"
            command += [f"{place}.teacher={teacher}", f"{place}.onto={student}"]
    if not (workdir / "report.json").exists():
        subprocess.run(command, cwd=ROOT, check=True)
    return workdir


def measure(student, classifier, train):
    """Returns FD-digits of 0 to 8, FD-digits, and the accuracies of 0 to 8 and of 9."""
    x, label = np.clip(np.asarray(student.sample(0, NUM)), -1, 1), np.arange(NUM) % 10
    features, real = (classifier.features(normalise(images)) for images in (x, train.x))
    old, old_real = label != NEW, train.label != NEW
    distances = [
        frechet_distance(moments(features[a]), moments(real[b]))
        for a, b in ((old, old_real), (old | True, old_real | True))
    ]
    shares = [classifier.accuracy(x[rows], label[rows]) for rows in (old, ~old)]
    return [f"{number:.3f}" for number in (*distances, *shares)]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=str(ROOT / "runs"))
    parser.add_argument("--seeds", default="0,1,2")
    options = parser.parse_args()
    root, train, rows = pathlib.Path(options.root), digits().train, []
    classifier = Classifier(train.x, train.label)
    for seed in map(int, options.seeds.split(",")):
        nine, learn, ten = (run(size, seed, root) for size in ("full", "learn", "ten"))
        for title, place in (
            ("of 0 to 8", nine / "s01_sid"),
            ("has learned 9", learn / "s00_learned"),
            ("fine-tuned itself (control)", learn / "s01_plain"),
            ("distilled from all digits", ten / "s01_sid"),
        ):
            student = load(place, parts=[nine / "s01_sid"])
            rows.append((title, seed, *measure(student, classifier, train)))
    titles = ("one-call student", "seed", "FD-digits of 0 to 8", "FD-digits")
    print(logging.table((*titles, "accuracy of 0 to 8", "accuracy of 9"), rows))


if __name__ == "__main__":
    main()
