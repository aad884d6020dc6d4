"""Measures finished networks against data and teacher.

python -m distill_jax.evaluate --student=runs/digits_guided
python -m distill_jax.evaluate --student=runs/digits_guided/s07_n0001 --w=0.5,1.5 --num=5000
"""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from threadpoolctl import threadpool_limits

from distill_jax import checkpoint, logs, report
from distill_jax.data import DATASETS
from distill_jax.errors import friendly
from distill_jax.metrics.features import Classifier
from distill_jax.metrics.frechet import Moments, frechet_distance, moments
from distill_jax.student import Student, find_final, load
from distill_jax.tables import build

Row = dict[str, Any]


class Yardstick:
    """Everything that samples of one dataset are compared with.

    Args:
      data: the spec of the dataset, as in a config.

    Attributes:
      name: of its Frechet distance.
      floor: distances between real images: two halves of the training images, and training
        against held-out images.
      real_accuracy: of the classifier on held-out images.
    """

    def __init__(self, data: dict[str, Any]):
        dataset = build(DATASETS, "dataset", data)
        train, held_out = dataset.images("train"), dataset.images("held_out")
        self.name = f"FD-{data['name']}"
        self._classifier = Classifier(train.x, train.label)
        features = self._classifier.features(train.x)
        self._real = moments(features)
        order = np.random.default_rng(0).permutation(len(features))
        halves = [moments(features[part]) for part in np.array_split(order, 2)]
        self.floor = {
            "halves": frechet_distance(*halves),
            "held_out": frechet_distance(self._real, self.moments(held_out.x)),
        }
        self.real_accuracy = self._classifier.accuracy(held_out.x, held_out.label)

    def summary(self) -> dict[str, Any]:
        """The name of the distance and what real images get."""
        return {"name": self.name, "floor": self.floor, "real_accuracy": self.real_accuracy}

    def moments(self, x: np.ndarray) -> Moments:
        """Mean and covariance of the features of images."""
        return moments(self._classifier.features(x))

    @threadpool_limits.wrap(limits=1)
    def measure(self, x: np.ndarray, label: np.ndarray, target: np.ndarray | None) -> Row:
        """Distances and accuracy of samples of these labels.

        Args:
          x: samples.
          label: what they are meant to show.
          target: the guided teacher's samples from the same noise, None when there is no teacher.
        """
        seen = self.moments(x)
        row = {self.name: frechet_distance(seen, self._real)}
        if target is not None:
            row[f"{self.name}-to-teacher"] = frechet_distance(seen, self.moments(target))
        row["accuracy"] = self._classifier.accuracy(x, label)
        if target is not None:
            row["l2"] = float(np.sqrt(np.mean((x - target) ** 2)))
        return row


@dataclasses.dataclass(frozen=True)
class Draw:
    """The same noise, and the classes in turn, for every network: samples compare in pairs.

    Attributes:
      num: samples, drawn in batches of at most `batch`.
      batch: larger ones are slower on a CPU, whose caches they leave.
      seed: of the noise.
    """

    num: int
    batch: int = 1000
    seed: int = 0

    def __call__(
        self, student: Student, w: float | None, num_steps: int | None = None
    ) -> tuple[np.ndarray, float]:
        """Samples (num, h, w, c), and the seconds they took."""
        label, parts = np.arange(self.num) % student.num_classes, []
        began = time.perf_counter()
        for start in range(0, self.num, self.batch):
            key = jax.random.fold_in(jax.random.key(self.seed), start)
            part = label[start : start + self.batch]
            parts.append(np.asarray(student.sample(key, len(part), part, w, num_steps)))
        return np.concatenate(parts), time.perf_counter() - began


def compare(
    yardstick: Yardstick,
    teacher: Student | None,
    students: Sequence[Student],
    strengths: Sequence[float],
    num: int,
) -> Iterator[Row]:
    """Rows of teacher and students at every w and number of steps.

    Args:
      yardstick: of the dataset that all were trained on.
      teacher: a network without w, sampled at the step counts of the students and at its own,
        which is the reference of the others; it is guided when the students take w. None leaves
        the columns that need it out.
      students: networks of one kind: all take w, or none does.
      strengths: values of w; for networks that know none, one row without.
      num: samples per row.
    """
    draw, label = Draw(num), np.arange(num) % students[0].num_classes
    strengths = _strengths(teacher, students, strengths)
    for network in students if teacher is None else (teacher, *students):
        draw(network, strengths[0])  # Compiles, so that no row's time includes it.
    for w in strengths:
        target = None
        if teacher is not None:
            most = int(teacher.method.num_steps)
            target, seconds = draw(teacher, w)
            for steps in sorted({most, *(int(s.method.num_steps) for s in students)}, reverse=True):
                x, took = (target, seconds) if steps == most else draw(teacher, w, steps)
                measured = yardstick.measure(x, label, target)
                yield _row("teacher", steps, w, measured, teacher.calls(w, steps), took / num)
        for student in students:
            x, took = draw(student, w)
            measured = yardstick.measure(x, label, target)
            steps = int(student.method.num_steps)
            yield _row("student", steps, w, measured, student.calls(w), took / num)


def _strengths(
    teacher: Student | None, students: Sequence[Student], strengths: Sequence[float]
) -> Sequence[float | None]:
    """The values of w that make a row: one without w for networks that know none."""
    known = students[0].takes_w or (teacher is None and students[0].can_be_guided)
    return strengths if known else (None,)


def _row(
    sampler: str, num_steps: int, w: float | None, measured: Row, calls: int, seconds: float
) -> Row:
    head = {"sampler": sampler, "num_steps": num_steps, "w": 0.0 if w is None else float(w)}
    return {**head, **measured, "calls": calls, "seconds_per_image": seconds}


def write_report(
    workdir: epath.Path, strengths: Sequence[float], num: int, stop: Callable[[], bool]
) -> bool:
    """Writes report.json, report.md and report.png over the finished stages of a workdir.

    Args:
      workdir: of a run whose stages are finished.
      strengths: values of w.
      num: samples per row.
      stop: polled between rows; true raises InterruptedError, and nothing is written.

    Returns:
      Whether there was anything to do: not when the files there are of the same networks.
    """
    finals = [find_final(stage) for stage in sorted(workdir.glob("s[0-9]*_*"))]
    prints = {final.parent.name: checkpoint.fingerprint(final) for final in finals}
    made_of = {"networks": prints, "w": list(strengths), "num_samples": num}
    path = workdir / "report.json"
    if path.exists() and json.loads(path.read_text()).get("made_of") == made_of:
        return False
    students = [network for network in map(load, finals) if network.method.needs_teacher]
    teacher = _root(students[-1], finals[-1]) if students else None
    students = students or [load(finals[-1])]
    yardstick = Yardstick(students[0].manifest["data"])
    counts = {int(student.method.num_steps) for student in students}
    per_w = len(students)
    if teacher is not None:
        per_w += len(counts | {int(teacher.method.num_steps)})
    total = per_w * len(_strengths(teacher, students, strengths))
    progress, rows = logs.Progress("report", total), []
    try:
        for row in compare(yardstick, teacher, students, strengths, num):
            rows.append(row)
            progress.update(len(rows), f"{row['sampler']} at {row['num_steps']} steps")
            if stop():
                raise InterruptedError("stopped while measuring")
    finally:
        progress.close()
    for student in students:
        mine = [row for row in rows if row["num_steps"] == student.method.num_steps]
        mine = [row for row in mine if row["sampler"] == "student"]
        metrics = {"protocol": report.protocol(yardstick.name, num), "rows": mine}
        checkpoint.record(find_final(workdir / student.manifest["stage"]), metrics)
    report.write(workdir, {**yardstick.summary(), "made_of": made_of, "rows": rows})
    return True


def _root(student: Student, final: epath.Path) -> Student | None:
    """The undistilled network at the start of the lineage, None when it is not there any more."""
    while student.method.needs_teacher:
        parent = student.manifest["parent"]
        if parent is None or not (final / parent / "manifest.json").exists():
            return None
        final = final / parent
        student = load(final)
    return student


def define_flags() -> None:
    """The flags of the command line; not at import, for `sample` has some of the same names."""
    flags.DEFINE_string("student", None, "A workdir, a stage or a final/ directory.")
    flags.DEFINE_list("w", ["0", "1", "2", "4"], "Guidance strengths.")
    flags.DEFINE_integer("num", 2000, "Samples per row.", lower_bound=2)
    flags.DEFINE_string("out", None, "Also write the rows to this JSON file.")


def main() -> None:
    """The command line."""
    values = flags.FLAGS
    if values.student is None:
        raise ValueError("--student is needed: the directory of a finished run")
    try:
        strengths = [float(w) for w in values.w]
    except ValueError as error:
        raise ValueError(f"--w={','.join(values.w)} is no list of numbers") from error
    final = find_final(values.student)
    student = load(final)
    teacher = _root(student, final) if student.method.needs_teacher else None
    yardstick = Yardstick(student.manifest["data"])
    rows = list(compare(yardstick, teacher, [student], strengths, values.num))
    logs.say(report.protocol(yardstick.name, values.num))
    logs.say(report.rows_table(rows))
    if values.out:
        checkpoint.write_json(epath.Path(values.out), {**yardstick.summary(), "rows": rows})


if __name__ == "__main__":
    define_flags()
    friendly(main)
