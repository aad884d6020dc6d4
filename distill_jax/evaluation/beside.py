"""Tables of measured numbers beside published ones, and of costs beside the papers' claims."""

import dataclasses
from collections.abc import Collection, Sequence

from distill_jax.evaluation.base import Row
from distill_jax.evaluation.published import (
    CLAIMS,
    INCEPTION,
    PUBLISHED,
    SAMPLES,
    Number,
    Publication,
    Published,
    strength,
)
from distill_jax.evaluation.records import Record, Stage
from distill_jax.runtime import logging

Line = tuple[object, ...]  # The cells of a row of a table.
NOT_RUN = "not run"
NOTHING = Publication("", "", 0, note="none on these data")
NUMBERS = "run", "stage", "steps", "w", "ours", "paper", "protocol", "updates", "hours", "device"
COSTS = (
    *("run", "stage", "w", "calls", "fewer calls", "seconds per image", "times faster"),
    *("time in full-size calls", "cost / teacher's training"),
)

HOW = (
    "To measure FID on CIFAR-10 as papers do: start the finished run's own command again with "
    f"`--config.evaluate.features=inception --config.evaluate.num_samples={SAMPLES}`, which trains "
    "nothing and replaces its report. It needs the weights "
    f"pt_inception-2015-12-05-{INCEPTION}.pth, see docs/evaluate.md. On ImageNet a report compares "
    "with 50,000 training images, which is another protocol; `python -m distill_jax.evaluate "
    "--images=... --reference=...` compares samples with the files of ADM and EDM."
)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A measured number beside a published one, or only one of them and words for the other.

    Raises:
      ValueError: if the two numbers are not of one protocol.
    """

    ours: Number | str
    paper: Number | str
    size: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.ours, str) or isinstance(self.paper, str):
            return
        if not self.paper.protocol.accepts(self.ours.protocol, self.size):
            raise ValueError(
                f"{self.ours} ({self.ours.protocol}) is not measured as {self.paper} "
                f"({self.paper.protocol})"
            )


def show(records: Sequence[Record], strengths: Collection[float] = ()) -> str:
    """Returns both tables with their notes, in Markdown.

    Args:
      records: records of runs and configs.
      strengths: values of w whose measured rows are shown; () for all.
    """
    return "\n\n".join((*numbers(records, strengths), *costs(records, strengths)))


def numbers(records: Sequence[Record], strengths: Collection[float] = ()) -> list[str]:
    """Returns the table of measured beside published numbers, and its notes; see `show`."""
    notes: list[str] = []
    rows = [row for record in records for row in _numbers(record, strengths, notes)]
    return [
        logging.table(NUMBERS, rows),
        *(["\n".join(f"{n}. {note}." for n, note in enumerate(notes, 1))] if notes else []),
        "updates and hours: those of the teacher + those of all later stages up to this one. Hours "
        "are wall-clock time of the training with compilation, as logged.",
        *([HOW] if notes else []),
    ]


def costs(records: Sequence[Record], strengths: Collection[float] = ()) -> list[str]:
    """Returns the table of costs beside the papers' claims, and its note; see `show`."""
    rows = [row for record in records for row in _costs(record, strengths)]
    if not rows:
        return []
    methods = {stage.method for record in records for stage in record.stages.values()}
    return [
        logging.table(COSTS, [*rows, *_claims(methods)]),
        "fewer calls and times faster: than the guided teacher at its own number of steps and "
        "the same w. time in full-size calls: seconds per image over those of one call of the "
        "teacher. cost: hours of all later stages over those of the teacher.",
    ]


def _numbers(record: Record, strengths: Collection[float], notes: list[str]) -> list[Line]:
    """Returns the rows of a record in the table of numbers, and adds their notes."""
    rows: list[Line] = []
    entry, used = PUBLISHED.get(record.published, NOTHING), []
    for published in entry.numbers:
        pair, row = _pair(record, published, entry)
        used.append(row)
        named = _name(record, published.stage) or published.stage
        steps = "not stated" if published.steps is None else published.steps
        note = f"{entry.paper}; {entry.method}. {published.source}"
        if note not in notes:
            notes.append(note)
        paper = f"{pair.paper} [{notes.index(note) + 1}]"
        mine: Line = (record.name, named, steps, strength(published), pair.ours, paper)
        rows.append((*mine, published.number.protocol, *_effort(record, named)))
    for row in record.rows:
        if any(row is other for other in used) or not _shown(record, row, strengths):
            continue
        pair = Pair(record.number(row), "none so measured")
        mine = record.name, row["stage"], row["num_steps"], f"{row['w']:g}", pair.ours, pair.paper
        rows.append((*mine, record.protocol, *_effort(record, row["stage"])))
    if not rows:
        last = list(record.stages.values())[-1]
        ours = "not measured" if last.finished else _unfinished(record)
        mine = record.name, last.name, "-", "-", ours, entry.note, "-"
        rows.append((*mine, *_effort(record, last.name)))
    return rows


def _pair(record: Record, published: Published, entry: Publication) -> tuple[Pair, Row | None]:
    """Returns a published number with the measured one of its protocol, if any, and its row."""
    name, number = _name(record, published.stage), published.number
    if name is None:
        return Pair("no such stage", number), None
    stage = record.stages.get(name)
    if not (stage.finished if stage else record.device):  # An imported network is finished.
        return Pair(_unfinished(record), number), None
    if published.w is None:
        return Pair("its w is not stated", number), None
    for row in record.rows:
        same = row["stage"] == name and row["num_steps"] == published.steps
        if same and row["w"] == published.w and record.protocol is not None:
            ours = record.number(row)
            if number.protocol.accepts(ours.protocol, entry.size):
                return Pair(ours, number, entry.size), row
    return Pair("not so measured", number), None


def _name(record: Record, name: str) -> str | None:
    """Returns the stage of that name without its number, or the imported network for a teacher."""
    found = (each for each in record.stages if each.partition("_")[2] == name)
    return next(found, record.imported if name == "teacher" else None)


def _unfinished(record: Record) -> str:
    """Returns why there is no number yet."""
    return "not finished" if record.device else NOT_RUN


def _shown(record: Record, row: Row, strengths: Collection[float]) -> bool:
    """Returns whether a measured row is shown: students, and the teacher at its own steps."""
    if strengths and row["w"] not in strengths:
        return False
    return row["role"] == "student" or row is record.references.get(row["w"])


def _effort(record: Record, name: str) -> tuple[str, str, str]:
    """Returns the updates, hours and device up to a stage: of the teacher + of later stages."""
    if not record.device or name not in (*record.stages, record.imported):
        return NOT_RUN, NOT_RUN, NOT_RUN
    teachers, later = _parts(record, name)
    lineage = (*teachers, *later)
    updates, hours = [], []
    for part in (teachers, later):
        if part:
            updates.append(f"{sum(each.done for each in part):,}")
            hours.append(_hours(part))
    known = ["?" if each is None else f"{each:.2g}" for each in hours]
    if not all(each.finished for each in lineage):
        planned = sum(each.planned for each in lineage)
        updates[-1] += f" of {planned:,}"
    outside = [] if lineage and not any(each.outside for each in lineage) else ["imported"]
    return " + ".join([*outside, *updates]), " + ".join([*outside, *known]), record.device


def _parts(record: Record, name: str) -> tuple[list[Stage], list[Stage]]:
    """Returns the stages of a lineage that train without a teacher, and the others."""
    lineage = record.lineage(name)
    return [s for s in lineage if s.teaches], [s for s in lineage if not s.teaches]


def _hours(stages: Sequence[Stage]) -> float | None:
    """Returns the hours of some stages; None if those of one are not recorded."""
    known = [stage.hours for stage in stages if stage.hours is not None]
    return sum(known, 0.0) if len(known) == len(stages) else None


def _costs(record: Record, strengths: Collection[float]) -> list[Line]:
    """Returns the rows of a record in the table of costs."""
    rows: list[Line] = []
    for row in record.rows:
        if not _shown(record, row, strengths):
            continue
        teacher, seconds = record.references.get(row["w"]), row["seconds_per_image"]
        ratios = ["-"] * 3
        if teacher is not None and seconds > 0 and teacher["seconds_per_image"] > 0:
            slow = teacher["seconds_per_image"]
            calls = teacher["calls"] / max(1, row["calls"])
            whole_calls = seconds * teacher["calls"] / slow
            ratios = [f"{number:.3g}" for number in (calls, slow / seconds, whole_calls)]
        teachers, later = _parts(record, row["stage"])
        # A teacher that was only fine-tuned here was trained elsewhere, in unknown time.
        whole = None if any(each.outside for each in teachers) else _hours(teachers)
        spent = _hours(later)
        cost = f"{spent / whole:.2g}" if later and spent is not None and whole else "-"
        first = record.name, row["stage"], f"{row['w']:g}", row["calls"], ratios[0]
        rows.append((*first, f"{seconds:.3g}", *ratios[1:], cost))
    return rows


def _claims(methods: Collection[str]) -> list[Line]:
    """Returns the rows of the papers' claims about the methods."""
    rows: list[Line] = []
    for claim in (claim for method in sorted(methods) for claim in CLAIMS.get(method, ())):
        cells = dict.fromkeys(COSTS, "-") | {claim.column: claim.text}
        rows.append((f"claim of {claim.paper}", claim.subject, *list(cells.values())[2:]))
    return rows
