"""Measures finished networks against the data and the teacher."""

import functools
import json
import math
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from distill_jax.evaluation import gallery, report
from distill_jax.evaluation.base import ROW, Evaluator, Row
from distill_jax.evaluation.protocols import make_evaluator
from distill_jax.runtime import distributed, logging
from distill_jax.runtime.files import read_json, write_json
from distill_jax.runtime.sharding import Layout
from distill_jax.sampling.batched import Draw
from distill_jax.sampling.codecs import Codec
from distill_jax.sampling.loading import codec_of, describe, find_parent, read, with_parts_of
from distill_jax.sampling.student import Student
from distill_jax.storage import checkpoint
from distill_jax.storage.checksums import is_intact, with_checksum

# Keys of the config's `evaluate` that the report depends on; the others are about training.
SETTINGS = ("w", "num_samples", "ancestral", "features")


class Entry(NamedTuple):
    """A row to measure; the best of several variances has the smallest distance.

    `role` is "teacher" or "student", `sampler` the name of the sampler in the row.
    """

    role: str
    sampler: str
    network: Student
    w: float | None
    num_steps: int
    variances: tuple[float | None, ...] = (None,)


def entries(
    teacher: Student | None,
    students: Sequence[Student],
    strengths: Sequence[float],
    ancestral: Sequence[float] = (),
) -> list[Entry]:
    """Returns the rows of a comparison; for every w the first is the teacher at its own steps.

    Args:
      teacher: a network that takes no w. It is sampled at the step counts of the students and at
        its own, which is the reference for all rows. It is guided if students take w. Without a
        teacher (None), the columns that need one are missing.
      students: networks to measure. A student that takes w, or can be guided, is measured at each
        of the strengths in its range; any other student at the w in its weights.
      strengths: values of w. A student whose range has none of them is measured at its smallest w.
        If no student has any w, there is one row per number of steps, without w.
      ancestral: weights of the large variance, at which the teacher is also sampled with the
        ancestral sampler; () for none.
    """
    free = [s.takes_w or s.can_be_guided for s in students or [teacher]]
    pairs = list(zip(students or [teacher], free, strict=True))
    baked = {_baked(student) for student, any_w in pairs if not any_w}
    lows = {
        float(student.trained.guidance.w_range[0])
        for student, any_w in pairs
        if student.takes_w and not any(knows(student, w) for w in strengths)
    }
    strengths = sorted({*(strengths if any(free) else ()), *baked, *lows})
    if strengths == [0.0] and not any(free):
        strengths = (None,)
    counts, found = {student.trained.num_steps for student in students}, []
    for w in strengths:
        # A student's weights may have w < 0, but a teacher cannot be guided by it.
        absent = teacher is None or (w is not None and w < 0)
        for n in () if absent else sorted({*counts, teacher.trained.num_steps})[::-1]:
            found.append(Entry("teacher", "teacher", teacher, w, n))
            if ancestral:
                found.append(
                    Entry("teacher", "teacher, ancestral", teacher, w, n, tuple(ancestral))
                )
        for student in students:
            if knows(student, w):
                name = student.manifest.lineage.method["name"]
                kind = "student" if student.trained.uses_ddim else f"student, {name}"
                found.append(Entry("student", kind, student, w, student.trained.num_steps))
    return found


def _baked(student: Student) -> float:
    """Returns the w in a student's weights, rounded to six digits."""
    return round(student.trained.guidance.fixed_w, 6)


def knows(student: Student, w: float | None) -> bool:
    """Returns whether the student can be sampled at guidance strength `w`; None is always True."""
    baked = _baked(student)
    low, high = student.trained.guidance.w_range or (
        (0.0, math.inf) if student.can_be_guided else [baked] * 2
    )
    return w is None or low <= w <= high


def compare(
    evaluator: Evaluator | None,
    planned: Sequence[Entry],
    num: int,
    start: int = 0,
    prompts: Sequence[str] = (),
    show: Callable[[Row, np.ndarray], None] = lambda *_: None,
) -> Iterator[Row]:
    """Yields the measured rows of `entries`; the reference has no distance to the reference.

    At most two networks are on the devices at once, so rows of the same network should be adjacent.
    The reference samples stay in the host's memory.

    Args:
      evaluator: evaluator of the samples; None in processes that only help to draw them.
      planned: rows to measure, from `entries`.
      num: number of samples per row; more are drawn for diversity where few repeat their label or
        prompt, see batched.repeats.
      start: index of the first row to measure; earlier rows exist already.
      prompts: prompts of the samples, for networks with captions; see protocols.prompts_for.
      show: callback with every row and its samples.
    """
    networks = {entry.network.directory: entry.network for entry in planned}
    loaded = functools.lru_cache(maxsize=2)(lambda directory: read(networks[directory]))
    draw = Draw(num, prompts=prompts).with_repeats(planned[0].network)
    targets, compiled = {}, set()

    def drawn(entry: Entry, variance: float | None = None) -> tuple[np.ndarray, float]:
        network, program = loaded(entry.network.directory), (id(entry.network), variance is None)
        if program not in compiled:
            _compile(draw, network, _given(entry), variance)
            compiled.add(program)
        return draw(network, _given(entry), entry.num_steps, variance)

    for entry in planned[start:]:
        reference, rows, samples = _reference(planned, entry.w), [], []
        for variance in entry.variances:
            x, seconds = drawn(entry, variance)
            if reference is not None and entry.w not in targets:
                targets[entry.w] = x if entry is reference else drawn(reference)[0]
            row = {}
            if evaluator is not None:
                target = None if entry is reference else targets.get(entry.w)
                row = evaluator.measure(x, draw.asked(entry.network), target, num)
            rows.append({**row, **_cost(entry, seconds / len(x)), "variance": variance})
            samples.append(x)
        best = rows[0] if evaluator is None else min(rows, key=lambda row: row[evaluator.name])
        place = rows.index(best)
        if best["variance"] is None:
            del best["variance"]
        found = {
            "role": entry.role,
            "sampler": entry.sampler,
            "stage": entry.network.manifest.stage,
            "num_steps": entry.num_steps,
            "w": 0.0 if entry.w is None else float(entry.w),
            **best,
        }
        show(found, samples[place])
        yield found


def _reference(planned: Sequence[Entry], w: float | None) -> Entry | None:
    """Returns the entry of the teacher at its own number of steps: the reference for w."""
    paired = any(entry.role == "student" for entry in planned)
    teachers = (entry for entry in planned if entry.w == w and entry.sampler == "teacher")
    return next(teachers, None) if paired else None


def _compile(draw: Draw, network: Student, w: float | None, variance: float | None) -> None:
    """Draws once to compile the program, so that no row's time includes the compilation.

    One sampling step is enough, because the number of steps is traced.
    """
    once = network.trained.sampler.with_steps(1)
    if once is not None and network.trained.sampler.on_grid:
        network = network.with_sampler(once)
    draw(network, w, variance=variance)


def _given(entry: Entry) -> float | None:
    """Returns w as passed to the network; None if the network takes no guidance."""
    return entry.w if entry.network.takes_w or entry.network.can_be_guided else None


def _cost(entry: Entry, seconds: float) -> Row:
    """Returns the network calls and the seconds per image."""
    calls = entry.network.calls(_given(entry), entry.num_steps)
    return {"calls": calls, "seconds_per_image": seconds}


def write_report(
    workdir: epath.Path,
    data: Mapping[str, Any] | Callable[[], Evaluator],
    settings: Mapping[str, Any],
    stop: Callable[[], bool],
    layout: Layout | None = None,
    parts: Sequence[epath.Path] = (),
    allow: Container[str] = (),
) -> bool:
    """Writes report.json, .md, .html and .png about the finished stages of a workdir.

    report.rows.json has the measured rows until the report is complete. The folder report/ has the
    first samples of every row.

    Args:
      workdir: workdir of a run whose stages are finished.
      data: options of the dataset to compare with, from the run's config. Manifests do not count:
        files in a workdir may come from elsewhere. Or the function that returns its evaluator.
      settings: the config's `evaluate`, of which it takes those in SETTINGS, and "prompts" of the
        samples for networks with captions, see protocols.prompts_for.
      stop: function that is polled between rows; if it returns true, InterruptedError is raised.
      layout: layout of the devices that draw samples; None is the first device.
      parts: directories of codecs and base networks outside the workdir, see loading.load.
      allow: names that the networks may import, see loading.load.

    Returns:
      Whether there was anything to do; False if the report is of the same networks and settings.
    """
    # An unfinished stage belongs to an earlier config, before --resume=force.
    manifests = sorted(workdir.glob("s[0-9]*_*/final/manifest.json"))
    finals = [manifest.parent for manifest in manifests]
    prints = {final.parent.name: checkpoint.fingerprint(final) for final in finals}
    prompts = settings.get("prompts", ())
    settings = {name: settings[name] for name in SETTINGS if settings.get(name, "") != ""}
    made_of = {"networks": prints, **json.loads(json.dumps(settings))}
    written = _content(workdir / "report.json", made_of)
    if distributed.broadcast_from_first(written is not None):
        if distributed.first():
            report.restore(workdir, written)
        return False
    networks = (describe(final, layout, parts, allow) for final in finals)
    decoders = [network for network in networks if network.trained.sampler.decodes]
    if not decoders:
        return False
    students = [network for network in decoders if network.manifest.distilled]
    teacher = root(students[-1]) if students else decoders[-1]
    planned = entries(teacher, students, settings["w"], settings["ancestral"])
    # Sorted by network, so that each network is loaded once.
    places = {id(network): place for place, network in enumerate([teacher, *students])}
    order = sorted(range(len(planned)), key=lambda i: places[id(planned[i].network)])
    ordered = [planned[i] for i in order]
    first, num = distributed.first(), settings["num_samples"]
    evaluator = _evaluator(data, settings, codec_of(decoders[-1])) if first else None
    show = functools.partial(gallery.keep, workdir, points=getattr(evaluator, "points", None))
    partial = workdir / "report.rows.json"
    rows = _rows(partial, made_of) or []
    before = distributed.broadcast_from_first(len(rows))
    progress = logging.Progress("report", len(planned), before)
    try:
        for row in compare(evaluator, ordered, num, before, prompts, show):
            rows.append(row)
            note = f"{row['sampler']} at {logging.counted(row['num_steps'], 'step')}"
            progress.update(len(rows), note)
            if first:
                write_json(partial, with_checksum({"made_of": made_of, "rows": rows}))
            if stop():
                raise InterruptedError("stopped while measuring")
    finally:
        progress.close()
    if first:
        rows = [rows[order.index(i)] for i in range(len(planned))]
        told = report.summary(evaluator, planned[0].network, num, prompts)
        _record(students, planned, rows, f"{told['protocol']} {told['diversity']['definition']}")
        report.write(workdir, {**told, "made_of": made_of, "rows": rows})
        partial.unlink(missing_ok=True)
    distributed.barrier("the report is written")
    return True


def _evaluator(
    data: Mapping[str, Any] | Callable[[], Evaluator], settings: Mapping[str, Any], codec: Codec
) -> Evaluator:
    """Returns the evaluator of a report; arguments are those of write_report, and the codec."""
    found = data() if callable(data) else make_evaluator(data, settings.get("features", ""))
    found.floor |= found.with_codec(codec)
    return found


def _rows(path: epath.Path, made_of: Mapping[str, Any]) -> list[Row] | None:
    """Returns the rows in a file; None as `_content` does."""
    content = _content(path, made_of)
    return None if content is None else content["rows"]


def _content(path: epath.Path, made_of: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns a file with rows; None if it is missing, or of other networks or settings.

    A damaged file is set aside.
    """
    if not path.exists():
        return None
    try:
        content = read_json(path)
    except ValueError:
        content = {}
    rows = content.get("rows")
    whole = is_intact(content) and isinstance(content.get("made_of"), dict)
    if whole and isinstance(rows, list) and all(map(_ok, rows)):
        return content if content["made_of"] == made_of else None
    logging.set_damaged_aside(path, "no rows of a report")
    return None


def _ok(row: Any) -> bool:
    """Returns whether a row that was read has what every row has."""
    return isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in ROW)


def _record(
    students: Sequence[Student],
    planned: Sequence[Entry],
    rows: Sequence[Row],
    protocol: str,
) -> None:
    """Writes the rows of every student to its manifest."""
    for student in students:
        mine = [row for entry, row in zip(planned, rows, strict=True) if entry.network is student]
        checkpoint.record(student.directory, {"protocol": protocol, "rows": mine})


def root(student: Student) -> Student | None:
    """Returns the undistilled network at the start of the lineage; None if it no longer exists."""
    first, seen = student, set()
    while student.manifest.distilled:
        place = find_parent(student)
        if place is None or place in seen:
            return None
        seen.add(place)
        student = describe(place, student.layout, student.parts, student.allow)
    return with_parts_of(first, student)
