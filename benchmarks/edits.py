"""Measures edits by prompt on captioned shapes, read from the pixels by the reader of scenes.

python benchmarks/edits.py --workdir=runs/shapes_guided --out=edits.md    # distils encoders first
python benchmarks/edits.py --workdir=runs/shapes_guided --encoders=       # without them
python benchmarks/edits.py --workdir=runs/shapes_guided --picture=edits.png    # only a picture

Encoders of 16 to 2 steps are distilled from the guided stage into WORKDIR_encoders.
"""

import argparse
import dataclasses
import pathlib
import shutil
import textwrap

import numpy as np
from etils import epath
from matplotlib.figure import Figure

from distill_jax.config import halvings, pipeline
from distill_jax.data import scenes
from distill_jax.data.prompts import captions_of
from distill_jax.data.shapes import shapes
from distill_jax.diffusion.pixels import normalise, to_uint8
from distill_jax.run import pipeline as running
from distill_jax.run import plan
from distill_jax.runtime import logging
from distill_jax.runtime.config_file import load_file
from distill_jax.sampling.loading import load

ROOT = pathlib.Path(__file__).parent.parent
W = (0.0, 2.0, 4.0)
NEAR = 1.0  # Pixels that an object may move.
OLD, NEW = "red", "blue"


@dataclasses.dataclass(frozen=True)
class Cases:
    """Pictures to edit, and what they shall show then.

    Attributes:
      x: pictures, uint8 (n, 16, 16, 3).
      shown: what they show.
      wanted: what they shall show.
      centre: middles of the objects that shall stay in place, (n, 2, 2); nan for others.
      mask: 1 where the picture is drawn anew, (n, 16, 16, 1); None for all of it.
    """

    x: np.ndarray
    shown: list
    wanted: list
    centre: np.ndarray
    mask: np.ndarray | None = None

    @property
    def images(self):
        return normalise(self.x)

    @property
    def source(self):
        return [scene.caption for scene in self.shown]

    @property
    def prompts(self):
        return [scene.caption for scene in self.wanted]


def tested(condition, num):
    """Returns the first `num` test pictures whose scene meets a condition, and the scenes."""
    data = shapes(64, 3000)
    found = [scenes.parse(caption) for caption in captions_of(data, "test")]
    rows = [i for i, scene in enumerate(found) if condition(scene)][:num]
    return data.images("test").x[rows], [found[i] for i in rows]


def centres(x, shown):
    """Returns the middles of the objects of scenes in pictures, (n, 2, 2), nan where none is."""
    middle = np.full((len(x), 2, 2), np.nan)
    for place in (0, 1):
        rows = [i for i, scene in enumerate(shown) if len(scene.objects) > place]
        each = [scenes.Scene((shown[i].objects[place],)) for i in rows]
        middle[rows, place] = scenes.read(x[rows], each).centre
    return middle


def recoloured(num):
    """Returns pictures with a red object and no blue one, of which red shall become blue."""

    def has(scene):
        colours = [colour for colour, _ in scene.objects]
        return OLD in colours and NEW not in colours

    x, shown = tested(has, num)
    wanted = [scenes.parse(scene.caption.replace(OLD, NEW)) for scene in shown]
    return Cases(x, shown, wanted, centres(x, shown))


def added(num):
    """Returns pictures of one object beside an empty half, in which another object shall appear.

    The pictures are test pictures of two objects, whose half with one of them is hidden. The new
    object has another colour or shape than the hidden one, so nothing of it can be copied.
    """
    rng = np.random.default_rng(0)
    x, shown = tested(lambda scene: len(scene.objects) == 2, num)
    kinds = [(c, s) for c in scenes.COLOURS for s in scenes.SHAPES]
    mask, half = np.zeros((len(x), *x.shape[1:3], 1), np.float32), scenes.SIDE // 2
    wanted, centre = [], centres(x, shown)
    for i, scene in enumerate(shown):
        place = int(rng.integers(2))
        stays, goes = scene.objects[1 - place], scene.objects[place]
        free = [k for k in kinds if k[0] != stays[0] and k != goes and k not in scenes.HELD_OUT]
        objects = [stays, stays]
        objects[place] = free[rng.integers(len(free))]
        wanted.append(scenes.Scene(tuple(objects), scene.relation))
        side = np.array(scenes.RELATIONS[scene.relation]) * (1 - 2 * place)
        across, down = (
            slice(None) if not s else slice(half) if s < 0 else slice(half, None) for s in side
        )
        mask[i, down, across] = 1
        centre[i, place] = np.nan
    return Cases(x, shown, wanted, centre, mask)


def judge(cases, y):
    """Returns what is right in edited images: bool (n,) each, and the largest move in pixels."""
    pictures = to_uint8(np.asarray(y))
    found = scenes.read(pictures, cases.wanted)
    apart = np.linalg.norm(centres(pictures, cases.wanted) - cases.centre, axis=-1)
    stays = np.isfinite(cases.centre).all(axis=-1)
    moved = np.where(stays, np.where(np.isfinite(apart), apart, np.inf), 0).max(axis=1)
    right = {"shown": found.all, "place": moved < NEAR}
    if cases.mask is not None:
        right["rest"] = ((pictures == cases.x) | (cases.mask > 0)).all(axis=(1, 2, 3))
    return {**right, "right": np.all([*right.values()], axis=0), "moved": moved}


def train_encoders(workdir, folder):
    """Distils encoders of 16 to 2 steps from a run's guided stage, and returns those of 4 and 2."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("codec", "conditioner"):
        if not (folder / part).exists():
            shutil.copytree(workdir / part, folder / part)
    config = load_file(ROOT / "configs" / "shapes_guided.py").get_config()
    rates = {"learning_rate": 5e-4, "ema_decay": 0.99, "w_range": (0.0, 4.0)}
    teacher = str(workdir / "s01_guided")
    rounds = halvings(16, 2, method="encoder", prefix="e", teacher=teacher, steps=150, **rates)
    config.stages = pipeline(*rounds)
    running.run(plan.make(config, epath.Path(folder)), stop=lambda: False)
    return {int(path.name[-4:]): load(path) for path in sorted(folder.glob("s*_e000[24]"))}


def networks(workdir):
    """Returns the guided stage, and the students of 4, 2 and 1 steps by number of steps."""
    students = {int(path.name[-4:]): load(path) for path in workdir.glob("s*_n000[124]")}
    return load(workdir / "s01_guided"), students


def sdedits(cases, students):
    """Yields (way, t, encoder's calls, calls, function of w) of SDEdit from the students' grids."""
    for n, student in sorted(students.items(), reverse=True):
        for start in range(1, n + 1):

            def edit(w, student=student, start=start):
                return student.img2img(0, cases.images, start, cases.prompts, w)

            name = "a new picture" if start == n else "SDEdit"
            yield f"{name}, {n}-step student", start / n, 0, start, edit


def inversions(cases, encoders, students):
    """Yields rows as `sdedits`, of images that are encoded up to a time and decoded from there.

    Args:
      cases: the cases.
      encoders: (name, encoder, prompts of the source, number of its steps).
      students: students by number of steps.
    """
    for name, encoder, source, m in encoders:
        for n, student in sorted(students.items(), reverse=True):
            for start in range(1, n + 1):
                if start * m % n or start * 2 < n:
                    continue

                def edit(w, encoder=encoder, student=student, source=source, start=start):
                    given = encoder, cases.images, source, cases.prompts, w
                    return student.translate(*given, start=start)

                yield f"{name}, {n}-step student", start / n, start * m // n, start, edit


def table(cases, ways):
    """Returns a table of the fractions of cases that are right, and the best of them as a line."""
    titles = ("way", "t", "encoder's calls", "calls", *(f"w = {w:g}" for w in W))
    titles += (
        "shown at best w",
        "in place",
        "training's pairs",
        "held-out pairs",
        "median move, px",
    )
    new, rows, best = np.array([scene.held_out for scene in cases.wanted]), [], (-1.0, "")
    for name, t, before, calls, edit in ways:
        found = [judge(cases, edit(w)) for w in W]
        right = [float(each["right"].mean()) for each in found]
        top = found[int(np.argmax(right))]
        parts = [top["right"][part].mean() if part.any() else np.nan for part in (~new, new)]
        means = [top["shown"].mean(), top["place"].mean(), *parts, np.median(top["moved"])]
        rows.append([name, f"{t:g}", before, calls, *(f"{r:.3f}" for r in [*right, *means])])
        best = max(best, (max(right), f"{name} from t = {t:g}, w = {W[int(np.argmax(right))]:g}"))
        logging.say(" ".join(map(str, rows[-1])))
    return f"{logging.table(titles, rows)}\n\nThe best is right on {best[0]:.3f}: {best[1]}."


def report(workdir, folder, num):
    """Returns the tables as text."""
    guided, students = networks(workdir)
    cases, holes = recoloured(num), added(num)
    encoders = [
        ("reverse DDIM in 32 steps", guided, cases.source, 32),
        ("reverse DDIM in 32 steps without a prompt", guided, "", 32),
    ]
    if folder:
        distilled = train_encoders(workdir, folder)
        encoders += [
            (f"{m}-step encoder", encoder, cases.source, m) for m, encoder in distilled.items()
        ]

    def fills():
        for n, student in sorted(students.items(), reverse=True):

            def fill(w, student=student):
                return student.inpaint(0, holes.images, holes.mask, holes.prompts, w)

            yield f"inpainting, {n}-step student", 1.0, 0, n, fill

    blue = [*sdedits(cases, students), *inversions(cases, encoders, students)]
    return (
        f"## {OLD} to {NEW}, {len(cases.x)} pictures\n\n{table(cases, blue)}\n\n"
        f"## An object in the empty half, {len(holes.x)} pictures\n\n{table(holes, fills())}\n"
    )


def picture(workdir, out, columns=6):
    """Draws sources, SDEdit, inversion, masked sources and inpainting, with the prompts below."""
    guided, students = networks(workdir)
    student, w = students[4], 4.0
    cases, holes = recoloured(columns), added(columns)
    given = cases.images, cases.source, cases.prompts, w
    rows = {
        "source": cases.images,
        "SDEdit\n2 calls": student.img2img(0, cases.images, 2, cases.prompts, w),
        "inversion\n2 calls": student.translate(guided, *given, start=2),
        "hidden half": np.where(holes.mask > 0, 0.5, holes.images),
        "inpainting\n4 calls": student.inpaint(0, holes.images, holes.mask, holes.prompts, w),
    }
    below = {0: cases.source, 2: cases.prompts, 4: holes.prompts}
    size = (1.3 * columns + 1.2, 1.55 * len(rows) + 0.8)
    figure = Figure(figsize=size, dpi=80, layout="constrained")
    axes = figure.subplots(len(rows), columns)
    for i, (name, x) in enumerate(rows.items()):
        axes[i][0].set_ylabel(name, fontsize=11)
        for j, image in enumerate(to_uint8(np.asarray(x))):
            axes[i][j].imshow(image, interpolation="nearest")
            axes[i][j].set(xticks=[], yticks=[])
            if i in below:
                axes[i][j].set_xlabel(textwrap.fill(below[i][j], 16), fontsize=9)
    figure.savefig(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", required=True)
    parser.add_argument("--encoders", help="workdir of encoders; by default WORKDIR_encoders")
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--out", default="edits.md")
    parser.add_argument("--picture", help="draws the picture of docs/edit.md into this file")
    options = parser.parse_args()
    workdir = epath.Path(options.workdir).absolute()
    if options.picture:
        picture(workdir, options.picture)
        return
    name = f"{workdir}_encoders" if options.encoders is None else options.encoders
    text = report(workdir, epath.Path(name).absolute() if name else None, options.num)
    pathlib.Path(options.out).write_text(text)
    logging.show(text)


if __name__ == "__main__":
    main()
