"""The report of a chain: quality against steps, as JSON, Markdown and a figure."""

import io
import zlib
from collections.abc import Sequence
from typing import Any

from etils import epath

from distill_jax.evaluation import diversity, figures
from distill_jax.evaluation.base import Evaluator, Row
from distill_jax.evaluation.pictures import prompts_of
from distill_jax.runtime import logging, text
from distill_jax.runtime.files import replace, write_json
from distill_jax.sampling.batched import Draw, repeats
from distill_jax.sampling.student import Student
from distill_jax.storage.checksums import with_checksum

# Definition of an evaluator's distance, by kind; {0} is its name, {1} the number of samples.
DISTANCES = {
    "SW2": "{0}: sliced Wasserstein-2 distance to the training points of a class, mean over "
    "classes, {1} samples, classes in turn. {0} worst class: the largest of these distances. "
    "recall: the fraction of training points that are in the ball of some sample, whose radius is "
    "the distance to its third neighbour, with 5,000 of each.",
    "FD": "{0}: Frechet distance to the training images in the features of a classifier trained "
    "on them, on the CPU in full precision, {1} samples, classes in turn; not FID. "
    "{0}-to-teacher: the distance to the guided teacher's samples at its full number of steps. "
    "accuracy: the classifier's accuracy on the requested classes. recall: the fraction of "
    "training images that are in the ball of some sample, in the classifier's features, whose "
    "radius is the distance to its third neighbour.",
    "wrong": "{0}: the fraction of pictures that do not show what their prompt says, read from the "
    "pixels, {1} samples. colour, shape, relation, count: the fractions where each is right; all: "
    "where all are. These prompts have the training's pairs of colour and shape; held-out pairs "
    "are in no training caption. spread: standard deviation in pixels of the place of the first "
    "object, in pictures of one prompt; a sampler that has collapsed draws the same one. PSNR: in "
    "dB, to the guided teacher's sample from the same noise.",
}


# Follows the definition of a distance in a published network.
PUBLISHED = (
    ", {1} samples, classes in turn. {0}-to-teacher: the distance to the guided teacher's samples "
    "at its full number of steps. MIND: 3 d times the mean squared difference of sorted "
    "projections on 1,000 directions, which few samples bias less. accuracy: that of a logistic "
    "regression on the features. retrieval: the fraction of samples whose prompt is nearer than 99 "
    "others to what a linear regression from features to words predicts. precision and recall: the "
    "fractions of samples and of training images that are in a ball of the other set, whose radius "
    "is the distance to the third "
    "neighbour."
)
# Text between the table and the pictures of the stages, by kind.
NOTES = {
    "FD": (
        "From 16 steps on, a student may be farther from the teacher (l2) than the teacher's own "
        "DDIM at the same number of steps: the guided stage leaves an error, which halvings keep "
        "and longer guided training reduces.",
        "## Samples",
        "One row per w, one column per class, with the same noise in every stage. For an encoder: "
        "test images above their encoded noise.",
    ),
    "wrong": (
        "## Samples",
        "One row per w, one column per prompt, with the same noise in every stage.",
    ),
    "SW2": (
        "## Samples",
        "One panel per w, with samples coloured by class over test points in grey, and the same "
        "noise in every stage.",
    ),
}


def protocol(name: str, num: int, definition: str = "") -> str:
    """Returns the definitions of all measures in a few sentences.

    Args:
      name: name of the distance.
      num: number of samples.
      definition: definition of the distance in a published network, see protocols.Evaluator.
    """
    return _measures(definition, name).format(name, num) + (
        " l2: root mean square difference per pixel, in [-1, 1], to the guided teacher's sample "
        "from the same noise. calls: network calls per image. seconds per image: wall clock of the "
        "whole set over its size, compiled. variance: the weight in [0, 1] of the ancestral "
        "sampler's large variance, the best of those tried. student: DDIM with the student's own "
        "number of steps; student, stochastic: the sampler of long steps and fresh noise; student, "
        "another name: that method's own sampler."
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
        "diversity": {
            "definition": diversity.definition(evaluator.unit, len(repeats(asked))),
            "real": evaluator.real(conditional=asked is not None),
        },
    }


def distance(name: str, num: int, definition: str = "") -> str:
    """Returns the definition of the distance only; arguments are those of `protocol`."""
    return _measures(definition, name).partition(". ")[0].format(name, num)


def _measures(definition: str, name: str) -> str:
    """Returns the definitions of the measures of samples."""
    return definition + PUBLISHED if definition else DISTANCES[_kind(name)]


def _kind(name: str) -> str:
    """Returns the kind of a distance, such as FD for FD-digits."""
    return "FD" if name == "FID" else name.partition("-")[0]


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
    """Writes report.png, report.md and, last, report.json.

    Args:
      workdir: workdir of the run.
      content: summary of the evaluator, "rows" and "made_of".
    """
    picture = io.BytesIO()
    figures.quality(content).savefig(picture, dpi=110, format="png")
    files = {"report.png": picture.getvalue(), "report.md": _text(workdir, content).encode()}
    for name, data in files.items():
        replace(workdir / name, data)
    prints = {name: zlib.crc32(data) for name, data in files.items()}
    write_json(workdir / "report.json", with_checksum({**content, "files": prints}))


def restore(workdir: epath.Path, content: dict[str, Any]) -> None:
    """Writes the files beside report.json anew if they are missing, or not as it lists them."""
    if not isinstance(prints := content.get("files"), dict):
        return  # An earlier version wrote it.
    changed = []
    for path in (workdir / "report.png", workdir / "report.md"):
        if not path.is_file() or zlib.crc32(path.read_bytes()) != prints.get(path.name):
            changed.append(path)
    for path in changed:
        if path.exists():
            logging.set_damaged_aside(path, "not as it was written")
    if changed:
        write(workdir, content)


def _text(workdir: epath.Path, content: dict[str, Any]) -> str:
    """Returns the report in Markdown."""
    name, rows = content["name"], content["rows"]
    grids = [path for path in sorted(workdir.glob("s[0-9]*_*/grid.png"))]
    *notes, heading, under = NOTES[_kind(name)]
    columns = [text.printable(prompt) for prompt in prompts_of(grids[0])] if grids else []
    parts = [
        f"# {workdir.name}",
        protocol(name, content["made_of"]["num_samples"], content.get("definition", "")),
        _real(content),
        "![quality against steps](report.png)",
        *_headlines(name, rows),
        rows_table(rows),
        *notes,
        *diversity.section(content),
        heading,
        under,
        *([f"Columns: {'; '.join(columns)}."] if columns else []),
        *(
            f"{path.parent.name}\n\n![{path.parent.name}]({path.parent.name}/grid.png)"
            for path in grids
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _real(content: dict[str, Any]) -> str:
    """Returns the measures of real images in words."""
    name, floor = content["name"], content["floor"]
    found, accuracy = content["real_recall"], content["real_accuracy"]
    if "chance" in floor:
        codec = f", {floor['codec']:.3g} after the codec" if "codec" in floor else ""
        return (
            f"Of real pictures {floor['test']:.3g} are wrong{codec}, and {floor['chance']:.3g} "
            "with the captions of others, which is chance."
        )
    codec = f" ({floor['codec']:.3g} after the codec)" if "codec" in floor else ""
    text = (
        f"Floor of {name}: {floor['halves']:.3g} between two halves of the training images, "
        f"{floor['test']:.3g} between training and test images{codec}. "
        f"The recall of one half of the training images by the other is {found:.3f}. "
    )
    if real := content.get("real_retrieval"):
        codec = f", {real['codec']:.3f} after the codec" if "codec" in real else ""
        text += f"Of test images {real['test']:.3f} are found by their captions{codec}. "
    if accuracy is not None:
        text += f"The classifier's accuracy on test images is {accuracy:.3f}. "
    elif content["rotation_accuracy"] is not None:
        text += (
            "The data have no labels, so the classifier was trained on quarter turns. It is right "
            f"about {content['rotation_accuracy']:.3f} of test images (chance is 0.25, where its "
            "features would be useless). "
        )
    return text + (
        "Guidance (w > 0) moves samples away from the data on purpose, so for w > 0 read the "
        "distance to the teacher."
    )


def _in_calls(row: Row, name: str) -> str:
    """Returns a distance and the number of network calls in words."""
    return f"{row[name]:.3g} in {logging.counted(row['calls'], 'call')}"


def _headlines(name: str, rows: Sequence[Row]) -> list[str]:
    """Returns a line per w: the fewest-step students and the teacher, at equal and full steps."""
    students = [row for row in rows if row["role"] == "student"]
    teachers = [row for row in rows if row["sampler"] == "teacher"]
    if not students or not teachers:
        return []
    fewest = min(row["num_steps"] for row in students)
    most = max(row["num_steps"] for row in teachers)
    lines = []
    for row in (row for row in students if row["num_steps"] == fewest):
        same_w = {r["num_steps"]: r for r in teachers if r["w"] == row["w"]}
        shown = [same_w[n] for n in dict.fromkeys((fewest, most)) if n in same_w]
        line = f"* w = {row['w']:g}, {row['sampler']}: {name} {_in_calls(row, name)}"
        if shown:
            line += "; the teacher has " + " and ".join(_in_calls(r, name) for r in shown)
        if most in same_w:
            ratio = same_w[most]["seconds_per_image"] / row["seconds_per_image"]
            line += f", {ratio:.0f} times slower" if ratio >= 1.5 else ""
        lines.append(f"{line}.")
    return ["\n".join(lines)]
