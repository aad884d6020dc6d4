"""The report of a chain: JSON, Markdown with pictures, and a page with curves and sliders."""

import io
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from etils import epath

from distill_jax.evaluation import (
    beside,
    diversity,
    figures,
    finished,
    gallery,
    page,
    plots,
    sheets,
    story,
    versus,
)
from distill_jax.evaluation.base import Evaluator, Row
from distill_jax.evaluation.definitions import kind, listed, protocol, real
from distill_jax.evaluation.finished import Finished
from distill_jax.evaluation.page import Part
from distill_jax.evaluation.pictures import prompts_of
from distill_jax.runtime import logging, text
from distill_jax.runtime.files import replace, write_json
from distill_jax.sampling.batched import Draw, repeats
from distill_jax.sampling.student import Student
from distill_jax.storage.checksums import with_checksum

# Text above the pictures of the stages, by kind.
SAMPLES = {
    "FD": "One row per w, one column per class, with the same noise in every stage. For an "
    "encoder: test images above their encoded noise.",
    "wrong": "One row per w, one column per prompt, with the same noise in every stage.",
    "SW2": "One panel per w, with samples coloured by class over test points in grey, and the same "
    "noise in every stage.",
}
FAR = (
    "From 16 steps on, a student may be farther from the teacher (l2) than the teacher's own DDIM "
    "at the same number of steps: the guided stage leaves an error, which halvings keep and longer "
    "guided training reduces."
)
OLDER = (
    "This report was measured without pictures of its rows. To draw them, start the run's command "
    "again without its report.json."
)


def summary(
    evaluator: Evaluator, student: Student, num: int, prompts: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the content of a report without its rows.

    Args:
      evaluator: evaluator of the samples.
      student: one of the networks.
      num: number of samples, without those that are added for diversity.
      prompts: prompts of the samples, see protocols.prompts_for.
    """
    asked = Draw(num, prompts=prompts).asked(student)
    return {
        **evaluator.summary(),
        "protocol": protocol(evaluator.name, num, evaluator.definition),
        "columns": gallery.columns_of(asked if evaluator.points is None else None),
        "diversity": {
            "definition": diversity.definition(evaluator.unit, len(repeats(asked))),
            "real": evaluator.real(conditional=asked is not None),
        },
    }


def rows_table(rows: Sequence[Row]) -> str:
    """Returns the rows as a Markdown table, with a column for every key of any row.

    The keys in diversity.OWN have a table of their own.
    A key that earlier rows lack is placed before the key that follows it in its own row.
    """
    titles: list[str] = []
    for row in rows:
        place = len(titles)
        for key in (name for name in reversed(row) if name not in ("role", *diversity.OWN)):
            if key in titles:
                place = titles.index(key)
            else:
                titles.insert(place, key)
    cells = [[_shown(row[key]) if key in row else "-" for key in titles] for row in rows]
    return logging.table(titles, cells)


def _shown(value: Any) -> str:
    """Returns the text of a cell; floats have three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(workdir: epath.Path, content: dict[str, Any]) -> None:
    """Writes report.png, report.md, report.html and, last, report.json.

    Args:
      workdir: workdir of the run.
      content: summary of the evaluator, "rows", "made_of" and "columns", the titles of pictures.
    """
    run = finished.read_or_say(workdir, content)
    same = gallery.same_noise(content["rows"], run.strips, content.get("columns", []))
    if same is not None:
        sheets.save(workdir / gallery.FOLDER / gallery.SAME_NOISE, same)
    picture = io.BytesIO()
    figures.quality(content).savefig(picture, dpi=110, format="png")
    text = _markdown(workdir, run, same is not None)
    files = {"report.png": picture.getvalue(), "report.md": text.encode()}
    for name, data in files.items():
        replace(workdir / name, data)
    replace(workdir / "report.html", as_page([run]).encode())
    prints = {name: zlib.crc32(data) for name, data in files.items()}
    write_json(workdir / "report.json", with_checksum({**content, "files": prints}))


def restore(workdir: epath.Path, content: dict[str, Any]) -> None:
    """Writes the files beside report.json anew if they are missing, or not as it lists them.

    Of report.html, which the report command may write anew, only the end is checked.
    """
    if not isinstance(prints := content.get("files"), dict):
        return  # An earlier version wrote it.
    changed = []
    for path in (workdir / "report.png", workdir / "report.md"):
        if not path.is_file() or zlib.crc32(path.read_bytes()) != prints.get(path.name):
            changed.append(path)
    path = workdir / "report.html"
    if not path.is_file() or not path.read_bytes().endswith(page.END.encode()):
        changed.append(path)
    for path in changed:
        if path.exists():
            logging.set_damaged_aside(path, "not as it was written")
    if changed:
        write(workdir, content)


def _markdown(workdir: epath.Path, run: Finished, pictured: bool) -> str:
    """Returns the report in Markdown; `pictured` says whether there is the picture of one noise."""
    content = run.content
    grids = [path for path in sorted(workdir.glob("s[0-9]*_*/grid.png"))]
    columns = [text.printable(prompt) for prompt in prompts_of(grids[0])] if grids else []
    same = f"![the same noise through teacher and students]({gallery.FOLDER}/{gallery.SAME_NOISE})"
    parts = [
        f"# {workdir.name}",
        opening(run),
        "The measures are defined [below](#what-the-measures-mean). [report.html](report.html) "
        "has the same with curves and sliders.",
        *([same] if pictured else []),
        "![quality against steps](report.png)",
        *(part for title, body in sections(run) for part in (f"## {title}", body)),
        "## Samples",
        SAMPLES[kind(content["name"])],
        *([f"Columns: {'; '.join(columns)}."] if columns else []),
        *(
            f"{path.parent.name}\n\n![{path.parent.name}]({path.parent.name}/grid.png)"
            for path in grids
        ),
        "## What the measures mean",
        meanings(content),
    ]
    return "\n\n".join(parts) + "\n"


def opening(run: Finished) -> str:
    """Returns what was trained and what came out."""
    content = run.content
    lines = [*story.headlines(content["name"], content["rows"]), story.floor(content)]
    return "\n\n".join(
        (
            *([" ".join(story.trained(run.record, content))] if run.record else []),
            "\n".join(f"* {line}" for line in lines if line),
        )
    ).strip()


def sections(run: Finished) -> list[tuple[str, str]]:
    """Returns the titles and texts of a run's tables."""
    content, record = run.content, run.record
    rows = content["rows"]
    found = []
    if record is not None:
        strengths = [gallery.strength(rows)]
        if record.published:
            found.append(("Beside the papers", "\n\n".join(beside.numbers([record], strengths))))
        found.append(
            ("Costs", "\n\n".join((story.stages(record), *beside.costs([record], strengths))))
        )
        if words := finished.versions(run):
            found[-1] = found[-1][0], f"{found[-1][1]}\n\nRun with {words}."
    far = any(row["role"] == "student" and row["num_steps"] >= 16 for row in rows)
    found.append(("All rows", rows_table(rows) + (f"\n\n{FAR}" if far else "")))
    if own := diversity.section(content):
        found.append(("Diversity and saturation", own))
    return found


def meanings(content: Mapping[str, Any]) -> str:
    """Returns the definitions of all measures of a report, and the measures of real images."""
    num = content["made_of"]["num_samples"]
    words = [protocol(content["name"], num, content.get("definition", ""))]
    if own := content.get("diversity"):
        words.append(own["definition"])
    return "\n\n".join((real(content), *map(listed, words)))


def as_page(runs: Sequence[Finished], strengths: Collection[float] = ()) -> str:
    """Returns the page of one run, or of several beside each other.

    Args:
      runs: finished runs.
      strengths: values of w in the table of several runs; () for all.
    """
    groups = versus.grouped(runs)
    several = len(runs) > 1
    parts = [Part(f"{run.name}" * several, opening(run)) for run in runs]
    if several:
        parts += [Part(title, body) for title, body in comparison(runs, strengths)]
    if any(run.strips for run in runs):
        parts.append(Part("The same noise", host="same_noise"))
    else:
        parts.append(Part("The same noise", OLDER))
    parts.append(Part("Move through w and steps", host="explorer"))
    parts.append(Part("Quality", host="quality"))
    if any(run.histories for run in runs):
        parts.append(Part("Losses", host="losses"))
    for run in runs:
        for title, body in sections(run):
            folded = several or title in ("All rows", "Diversity and saturation")
            parts.append(
                Part(f"{run.name}: {title.lower()}" if several else title, body, "", folded)
            )
    for content in {run.content["name"]: run.content for run in runs}.values():
        name = f": {content['name']}" * several
        parts.append(Part(f"What the measures mean{name}", meanings(content), "", True))
    return page.render(" and ".join(groups), parts, plots.data(groups))


def comparison(
    runs: Sequence[Finished], strengths: Collection[float] = ()
) -> list[tuple[str, str]]:
    """Returns the titles and texts of the tables that compare runs, in Markdown.

    Args:
      runs: finished runs.
      strengths: values of w that are shown; () for all.
    """
    found = [("Side by side", versus.side_by_side(runs, strengths))]
    records = [run.record for run in runs if run.record is not None]
    lines = versus.differences(records)
    text = logging.table(["key", *(record.name for record in records)], lines)
    found.append(("Differences of the configs", text if lines else "None."))
    return found
