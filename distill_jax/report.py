"""The report of a chain: quality against steps, as JSON, Markdown and a picture."""

from collections.abc import Sequence
from typing import Any

import matplotlib
from etils import epath
from matplotlib.figure import Figure

from distill_jax import checkpoint, logs

Row = dict[str, Any]
STYLES = ("-", "--", ":", "-.", (0, (1, 4)), (0, (5, 4)))  # Of a sampler's line.


def protocol(name: str, num: int) -> str:
    """What the numbers mean, in a few sentences."""
    return (
        f"{name}: Frechet distance to the training images in the features of a classifier trained "
        f"on them, {num} samples, classes in turn; not FID. {name}-to-teacher: to the guided "
        "teacher's samples at its full number of steps. accuracy: of that classifier on the "
        "classes asked for. l2: root mean square difference per pixel, in [-1, 1], to the guided "
        "teacher's sample from the same noise. calls: network calls per image. seconds per image: "
        "wall clock of the whole set over its size, compiled. variance: of the ancestral sampler, "
        "the weight of the large one in [0, 1], the best of those tried. student: DDIM with its "
        "own number of steps; student, stochastic: the sampler of long steps and fresh noise."
    )


def rows_table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table, with a column for everything that any of them has."""
    titles = list({key: None for row in rows for key in row})
    cells = [[_shown(row[key]) if key in row else "-" for key in titles] for row in rows]
    return logs.table(titles, cells)


def _shown(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def write(workdir: epath.Path, content: dict[str, Any]) -> None:
    """Writes report.png, report.md and, last, report.json.

    Args:
      workdir: of the run.
      content: "name", "floor", "real_accuracy", "rows" and "made_of".
    """
    with (workdir / "report.png").open("wb") as file:
        _figure(content).savefig(file, dpi=110)
    (workdir / "report.md").write_text(_text(workdir, content))
    checkpoint.write_json(workdir / "report.json", content)


def _text(workdir: epath.Path, content: dict[str, Any]) -> str:
    name, rows, floor = content["name"], content["rows"], content["floor"]
    grids = [path for path in sorted(workdir.glob("s[0-9]*_*/grid.png"))]
    parts = [
        f"# {workdir.name}",
        protocol(name, content["made_of"]["num_samples"]),
        f"Floor of {name}: {floor['halves']:.3g} between two halves of the training images, "
        f"{floor['held_out']:.3g} between training and held-out images. {_accuracy(content)}"
        "Guidance (w > 0) moves samples away from the data on purpose, so there the distance to "
        "the teacher is the one to read.",
        "![quality against steps](report.png)",
        *_headlines(name, rows),
        rows_table(rows),
        "From 16 steps on a student need not be nearer to the teacher (l2) than the teacher's own "
        "DDIM at that number of steps: absorbing guidance leaves an error that halvings keep, and "
        "longer guided training lowers.",
        "## Samples",
        "One row for each w, one column for each class, the same noise in every stage; of an "
        "encoder, held-out images above the noise they are taken to.",
        *(
            f"{path.parent.name}\n\n![{path.parent.name}]({path.parent.name}/grid.png)"
            for path in grids
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _accuracy(content: dict[str, Any]) -> str:
    value = content["real_accuracy"]
    if value is None:
        return "The data have no labels: the classifier learned to tell quarter turns. "
    return f"The classifier's accuracy on held-out images is {value:.3f}. "


def _headlines(name: str, rows: Sequence[Row]) -> list[str]:
    """The fewest-step students beside the teacher at the same steps and at its own, per w."""
    students = [row for row in rows if row["sampler"].startswith("student")]
    teachers = [row for row in rows if row["sampler"] == "teacher"]
    if not students or not teachers:
        return []
    fewest = min(row["num_steps"] for row in students)
    most = max(row["num_steps"] for row in teachers)
    lines = []
    for row in (row for row in students if row["num_steps"] == fewest):
        same_w = {r["num_steps"]: r for r in teachers if r["w"] == row["w"]}
        few, full = same_w[fewest], same_w[most]
        lines.append(
            f"* w = {row['w']:g}, {row['sampler']}: {name} {row[name]:.3g} in {row['calls']} "
            f"call(s); the teacher "
            f"has {few[name]:.3g} in {few['calls']} and {full[name]:.3g} in {full['calls']} calls, "
            f"{full['seconds_per_image'] / row['seconds_per_image']:.0f} times slower."
        )
    return ["\n".join(lines)]


def _figure(content: dict[str, Any]) -> Figure:
    name, rows = content["name"], content["rows"]
    measures = [key for key in (name, f"{name}-to-teacher", "l2") if key in rows[0]]
    figure = Figure(figsize=(4.6 * len(measures), 4.2), layout="constrained")
    colors = matplotlib.colormaps["viridis"]
    strengths = sorted({row["w"] for row in rows})
    samplers = sorted({row["sampler"] for row in rows})
    for axis, measure in zip(
        figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True
    ):
        for i, w in enumerate(strengths):
            for sampler, style in zip(samplers, STYLES, strict=False):
                mine = [row for row in rows if row["w"] == w and row["sampler"] == sampler]
                mine = sorted(mine, key=lambda row: row["num_steps"])
                steps = [row["num_steps"] for row in mine]
                values = [row[measure] or float("nan") for row in mine]
                color = colors(0.85 * i / max(1, len(strengths) - 1))
                label = f"{sampler}, w = {w:g}"
                axis.plot(steps, values, style, marker="o", markersize=3, color=color, label=label)
        axis.set(xscale="log", yscale="log", xlabel="sampling steps", title=measure)
        axis.set_xticks(sorted({row["num_steps"] for row in rows}))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    return figure
