"""Fine-tunes teachers that lack what distillation needs, for the tables of docs/ablations.md.

python benchmarks/finetune.py                         # trains runs/finetune first
python benchmarks/finetune.py --parts=dropout --seeds=0,1,2 --recipe --root=/tmp/runs

All teachers are those of configs/digits_guided.py but for one thing: `dropout` was trained without
label dropout, `v` predicts eps, too, and `labels` has no labels. A trial is a share of the
teacher's updates at a multiple of its learning rate. Samples are those of DDIM in 64 steps. The
last column is the distance to those of a teacher that had label dropout from the start. --recipe
trains only the trial that docs/teachers.md recommends.
"""

import argparse
import dataclasses
import pathlib
from typing import NamedTuple

import numpy as np
from etils import epath

from distill_jax import load
from distill_jax.config import digits, digits_teacher, halvings, pipeline, stage
from distill_jax.data.digits import digits as digits_data
from distill_jax.diffusion.pixels import normalise
from distill_jax.metrics.features import Classifier
from distill_jax.metrics.frechet import frechet_distance, moments
from distill_jax.run import pipeline as running
from distill_jax.run import plan
from distill_jax.runtime import logging

ROOT = pathlib.Path(__file__).parent.parent
NUM, UPDATES, RATE = 2000, 2500, 1e-3
W = {"dropout": (0, 1, 2, 4), "v": (0, 2), "labels": (0, 2)}
PLAIN = dict(label_dropout=0.0)
# Options of a part's teacher, of its data and its parameterization.
TEACHERS = {
    "reference": ({}, {}, "v"),
    "dropout": (PLAIN, {}, "v"),
    "v": (dict(weighting="snr", **PLAIN), {}, "eps"),
    "labels": (PLAIN, dict(labelled=False), "v"),
}


class Trial(NamedTuple):
    """A fine-tuning, relative to the teacher's updates and learning rate."""

    share: float
    rate: float
    dropout: float = 0.1
    decay_to: float = 0.0

    def stage(self, number, part, teacher):
        """Returns the stage of the trial."""
        steps, new = round(self.share * UPDATES), ("label_embed",) if part == "labels" else ()
        rates = dict(learning_rate=self.rate * RATE, warmup=steps // 20, decay_to=self.decay_to)
        rates.update(ema_decay=0.995, ema_ramp=0.05, num_steps=64, new=new)
        name, dropout = f"tuned{number:02d}", self.dropout
        return stage(
            name, "diffusion", teacher=teacher, steps=steps, label_dropout=dropout, **rates
        )


RECIPE = Trial(0.25, 1.0, 0.2)
OTHERS = (Trial(0.1, 1.0, 0.2), Trial(0.5, 1.0, 0.2))
GRIDS = {
    "dropout": (
        *(Trial(share, rate) for share in (0.05, 0.1, 0.25) for rate in (0.1, 0.3, 1.0)),
        *(Trial(0.25, 1.0, dropout) for dropout in (0.2, 0.5)),
        Trial(0.1, 1.0, 0.5),
        Trial(0.25, 1.0, decay_to=1.0),
        Trial(0.5, 1.0),
    ),
    "v": (RECIPE, *OTHERS, Trial(0.25, 0.3, 0.2)),
    "labels": (RECIPE, *OTHERS),
}


def train(workdir, seed, stages, head="v", **data):
    """Trains a chain on digits, unless that is done, and returns the directories of its stages."""
    config = digits()
    config.seed, config.parameterization, config.evaluate.w = seed, head, (0.0,)
    config.data.update(data)
    config.stages = pipeline(*stages)
    running.run(plan.make(config, epath.Path(workdir)), stop=lambda: False)
    return [workdir / name for name in sorted(config.stages)]


def train_teacher(root, seed, part):
    """Trains the teacher of a part."""
    options, data, head = TEACHERS[part]
    return train(root / f"{part}_{seed}", seed, [digits_teacher(**options)], head, **data)[0]


class Judge:
    """Measures networks against the training images, and against a teacher of the same seed."""

    def __init__(self):
        train = digits_data().train
        self._classifier = Classifier(train.x, train.label)
        self._real, self._reference = self._moments(train.x), {}

    def _moments(self, x):
        return moments(self._classifier.features(normalise(np.clip(x, -1, 1))))

    def row(self, student, part="dropout", key=0, reference=False):
        """Returns four cells: w, FD-digits, accuracy and the distance to the reference, by w."""
        strengths = W[part] if student.can_be_guided else (0,)
        found = []
        for w in strengths:
            x = np.asarray(student.sample(key, NUM, w=w or None))
            drawn = self._moments(x)
            if reference:
                self._reference[w] = drawn
            accuracy = self._classifier.accuracy(x, np.arange(NUM) % 10)
            near = frechet_distance(drawn, self._reference[w])
            found.append((frechet_distance(drawn, self._real), accuracy, near))
        columns = zip(*found, strict=True)
        cells = [" / ".join(f"{number:.2f}" for number in column) for column in columns]
        return [" / ".join(map(str, strengths)), *cells]


def unlocked(student):
    """Returns a teacher as if it had seen its null condition (control)."""
    trained = student.trained
    trained = trained._replace(guidance=trained.guidance._replace(null=True))
    return dataclasses.replace(
        student, manifest=dataclasses.replace(student.manifest, trained=trained)
    )


def measure(judge, part, seed, root, recipe):
    """Yields the rows of a part at a seed: its teacher, then the trials."""
    place = train_teacher(root, seed, part)
    teacher = load(place)
    yield ("teacher", *judge.row(unlocked(teacher) if teacher.num_classes else teacher, part))
    trials, kind = ((RECIPE,), "recipe") if recipe else (GRIDS[part], "grid")
    stages = [trial.stage(i, part, str(place)) for i, trial in enumerate(trials)]
    places = train(root / f"{part}_{seed}_{kind}", seed, stages)
    for trial, place in zip(trials, places, strict=True):
        shown = f"{100 * trial.share:g} % at {trial.rate:g}, dropout {trial.dropout:g}"
        yield (shown + ", constant" * bool(trial.decay_to), *judge.row(load(place), part))


def halve(judge, seed, root, kind):
    """Yields a row for one step of a reference, of a teacher that predicts eps, and of recipe v."""
    reference, eps = (train_teacher(root, seed, part) for part in ("reference", "v"))
    tuned = root / f"v_{seed}_{kind}" / "s00_tuned00"
    options = dict(steps=300, learning_rate=0.5 * RATE, ema_decay=0.98)
    for title, teacher, head in (
        ("v", reference, "v"),
        ("eps", eps, "eps"),
        ("eps to v", tuned, "v"),
    ):
        rounds = halvings(4, 1, teacher=str(teacher), **options)
        name = title.replace(" ", "_")
        last = train(root / f"halved_{seed}_{name}", seed, rounds, head)[-1]
        yield (f"{title}, halved to 1 step", *judge.row(load(last)))


def rows_of(seed, parts, root, recipe):
    """Yields all rows of a seed."""
    judge, reference = Judge(), load(train_teacher(root, seed, "reference"))
    yield ("-", seed, "label dropout from the start", *judge.row(reference, reference=True))
    if not recipe:
        yield ("-", seed, "the same, other noise", *judge.row(reference, key=1))
    for part in parts:
        found = measure(judge, part, seed, root, recipe)
        yield from ((part, seed, *row) for row in found)
        if part == "v":
            kind = "recipe" if recipe else "grid"
            yield from ((part, seed, *row) for row in halve(judge, seed, root, kind))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default=str(ROOT / "runs" / "finetune"))
    parser.add_argument("--parts", default=",".join(GRIDS))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--recipe", action="store_true")
    options = parser.parse_args()
    parts, root = options.parts.split(","), pathlib.Path(options.root)
    rows = []
    for seed in map(int, options.seeds.split(",")):
        for row in rows_of(seed, parts, root, options.recipe):
            rows.append(row)
            logging.show("  ".join(map(str, row)))
    titles = ("part", "seed", "network", "w", "FD-digits", "accuracy", "FD to the reference")
    print(logging.table(titles, rows))


if __name__ == "__main__":
    main()
