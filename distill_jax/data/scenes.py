"""Captioned scenes of coloured shapes: drawn from captions, and read back from pixels exactly.

A scene has one object, "a red circle", or two of different colours, "a red circle above a blue
square". Because every attribute can be read from the pixels, the pictures of a text-to-image model
can be compared with their prompts without another network.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SIDE = 16  # Of a picture, in pixels.
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 160, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 190, 20),
    "purple": (150, 60, 190),
    "cyan": (30, 180, 200),
}
SHAPES = ("circle", "square", "triangle", "cross")
# Place of the first object relative to the second: columns, rows.
RELATIONS = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}
BACKGROUND = 255.0
RADIUS = 3.3  # Of a circle; the other shapes have about its area.
DISTANCE = 8.0  # Between the middles of two objects, before they are moved at random.
# Largest random move: of a single object, and of two objects across and along their relation.
SINGLE, ACROSS, ALONG = 1.75, 1.5, 0.4
SAMPLES = 4  # Samples per pixel and axis, against jagged edges.
LEAST = 6.0  # Pixels of a colour that make an object.
# Pairs that are in no training caption.
HELD_OUT = (("red", "cross"), ("green", "triangle"), ("blue", "circle"), ("yellow", "square"))


class Scene(NamedTuple):
    """The objects of a scene and their relation, as a caption names them.

    Attributes:
      objects: (colour, shape) of one or two objects, as names.
      relation: a name in RELATIONS, "" for one object.
    """

    objects: tuple[tuple[str, str], ...]
    relation: str = ""

    @property
    def caption(self) -> str:
        """The caption, such as "a red circle above a blue square"."""
        named = [f"a {colour} {shape}" for colour, shape in self.objects]
        return f" {self.relation} ".join(named)

    @property
    def held_out(self) -> bool:
        """Whether a pair of HELD_OUT is in the scene."""
        return any(pair in HELD_OUT for pair in self.objects)


def all_scenes() -> tuple[Scene, ...]:
    """Returns every scene: 24 of one object, and 1,920 of two objects of different colours."""
    pairs = list(itertools.product(COLOURS, SHAPES))
    two = itertools.product(pairs, RELATIONS, pairs)
    return (
        *(Scene((pair,)) for pair in pairs),
        *(Scene((a, b), relation) for a, relation, b in two if a[0] != b[0]),
    )


def parse(caption: str) -> Scene:
    """Returns the scene that a caption describes.

    Raises:
      ValueError: for a caption of another form.
    """
    words = caption.lower().split()
    found = [(a, b) for a, b in itertools.pairwise(words) if a in COLOURS and b in SHAPES]
    scene = Scene(tuple(found), " ".join(words[3:-3]) if len(found) == 2 else "")
    known = scene.relation in RELATIONS if len(found) == 2 else len(found) == 1
    if not known or scene.caption.split() != words or len({c for c, _ in found}) < len(found):
        raise ValueError(
            f"{caption!r} describes no scene; expected such as 'a red circle' or 'a red circle "
            f"above a blue square', of the colours {', '.join(COLOURS)}, the shapes "
            f"{', '.join(SHAPES)} and the relations {', '.join(RELATIONS)}"
        )
    return scene


def draw(scenes: Sequence[Scene], rng: np.random.Generator) -> np.ndarray:
    """Draws a picture of every scene at random places.

    Returns:
      uint8 pictures (n, SIDE, SIDE, 3).
    """
    pictures = np.full((len(scenes), SIDE, SIDE, 3), BACKGROUND)
    centres = _places(scenes, rng)
    for place in (0, 1):
        rows = [i for i, scene in enumerate(scenes) if len(scene.objects) > place]
        if not rows:
            continue
        colours, shapes = zip(*(scenes[i].objects[place] for i in rows), strict=True)
        alpha = _coverage([SHAPES.index(s) for s in shapes], centres[rows, place])[..., None]
        colour = np.array([COLOURS[name] for name in colours], float)[:, None, None]
        pictures[rows] += alpha * (colour - pictures[rows])
    return np.round(pictures).astype(np.uint8)


def _places(scenes: Sequence[Scene], rng: np.random.Generator) -> np.ndarray:
    """Returns random middles of the objects, (n, 2 objects, column and row)."""
    move = rng.uniform(-1, 1, (len(scenes), 2, 2))
    along = np.array([RELATIONS.get(scene.relation, (0, 0)) for scene in scenes], float)
    two = np.any(along != 0, axis=-1)[:, None, None]
    sides = np.stack([along, -along], axis=1)
    most = np.where(two, np.where(sides != 0, ALONG, ACROSS), SINGLE)
    return SIDE / 2 + sides * DISTANCE / 2 + most * move


def _coverage(shapes: Sequence[int], centres: np.ndarray) -> np.ndarray:
    """Returns the fraction of every pixel that a shape covers, (n, SIDE, SIDE).

    Args:
      shapes: numbers in SHAPES, (n,).
      centres: middles of the shapes, (n, column and row).
    """
    at = (np.arange(SIDE * SAMPLES) + 0.5) / SAMPLES
    x, y = (at - centres[:, axis, None] for axis in (0, 1))
    x, y = x[:, None], y[:, :, None]
    inside = np.zeros((len(centres), len(at), len(at)), bool)
    tall = 1.25 * RADIUS  # From the middle of a triangle to its corners.
    for number, found in enumerate(
        (
            lambda x, y: x**2 + y**2 <= RADIUS**2,
            lambda x, y: np.maximum(abs(x), abs(y)) <= 0.88 * RADIUS,
            lambda x, y: (y <= tall / 2) & (y >= 3**0.5 * abs(x) - tall),
            lambda x, y: (
                (np.minimum(abs(x), abs(y)) <= 1.2) & (np.maximum(abs(x), abs(y)) <= 1.1 * RADIUS)
            ),
        )
    ):
        rows = np.asarray(shapes) == number
        inside[rows] = found(x[rows], y[rows])
    return inside.reshape(-1, SIDE, SAMPLES, SIDE, SAMPLES).mean(axis=(2, 4))


class Reading(NamedTuple):
    """The attributes that are right in n pictures, bool (n,) each, and the places of objects.

    Attributes:
      colour: whether every colour of the caption is there.
      shape: whether every object of the caption has its colour and shape.
      relation: whether two objects are in their relation; True for one object that is there.
      count: whether there are as many objects as the caption has.
      all: all of these.
      centre: middle of the first object, (n, column and row), nan where its colour is missing.
    """

    colour: np.ndarray
    shape: np.ndarray
    relation: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # Hides tuple.count, which nobody calls.
    all: np.ndarray
    centre: np.ndarray


def read(pictures: np.ndarray, scenes: Sequence[Scene]) -> Reading:
    """Reads the attributes of scenes from pictures.

    Every pixel is a mixture of the background and the one of the COLOURS that explains it best. A
    colour that covers at least LEAST pixels is an object, and its shape is the one that overlaps
    it most where its middle is.

    Args:
      pictures: uint8 pictures (n, SIDE, SIDE, 3).
      scenes: what they should show.

    Raises:
      ValueError: for pictures of another shape or type.
    """
    if pictures.shape != (len(scenes), SIDE, SIDE, 3) or pictures.dtype != np.uint8:
        raise ValueError(
            f"pictures are {pictures.dtype} of shape {pictures.shape}; expected uint8 of shape "
            f"({len(scenes)}, {SIDE}, {SIDE}, 3)"
        )
    covered = _colours(pictures)
    area = covered.sum(axis=(1, 2))
    names = list(COLOURS)
    found, shown, middle = [], [], np.full((len(scenes), 2, 2), np.nan)
    for place in (0, 1):
        rows = np.array([i for i, s in enumerate(scenes) if len(s.objects) > place], int)
        wanted = [scenes[i].objects[place] for i in rows]
        colour = np.array([names.index(c) for c, _ in wanted], int)
        there = area[rows, colour] >= LEAST
        rows, colour = rows[there], colour[there]
        alpha = covered[rows, :, :, colour]
        middle[rows, place] = _middles(alpha)
        shape = _shapes(alpha, middle[rows, place])
        right = shape == [SHAPES.index(s) for (_, s), t in zip(wanted, there, strict=True) if t]
        found.append(np.isin(np.arange(len(scenes)), rows))
        shown.append(np.isin(np.arange(len(scenes)), rows[right]))
    number = np.array([len(scene.objects) for scene in scenes])
    colours = found[0] & (found[1] | (number == 1))
    shapes = shown[0] & (shown[1] | (number == 1))
    relation = colours & _related(middle, scenes)
    count = (area >= LEAST).sum(axis=1) == number
    return Reading(colours, shapes, relation, count, shapes & relation & count, middle[:, 0])


def _colours(pictures: np.ndarray) -> np.ndarray:
    """Returns how much of every pixel each of the COLOURS covers, (n, SIDE, SIDE, colours)."""
    light = BACKGROUND - pictures.astype(np.float32)
    directions = BACKGROUND - np.array(list(COLOURS.values()), np.float32)
    alpha = np.clip(light @ directions.T / (directions**2).sum(axis=1), 0, 1)
    apart = ((light[..., None, :] - alpha[..., None] * directions) ** 2).sum(axis=-1)
    best = apart.argmin(axis=-1)[..., None] == np.arange(len(COLOURS))
    return np.where(best & (alpha > 0.15), alpha, 0)


def _middles(alpha: np.ndarray) -> np.ndarray:
    """Returns the middles (n, column and row) of what is covered, alpha (n, SIDE, SIDE)."""
    at, total = np.arange(SIDE) + 0.5, alpha.sum(axis=(1, 2))
    return np.stack([(alpha.sum(axis=axis) * at).sum(axis=1) / total for axis in (1, 2)], axis=1)


def _shapes(alpha: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Returns the numbers of the shapes that overlap what is covered most, (n,)."""
    overlap = []
    for number in range(len(SHAPES)):
        ideal = _coverage([number] * len(alpha), centres)
        both, either = np.minimum(alpha, ideal), np.maximum(alpha, ideal)
        overlap.append(both.sum(axis=(1, 2)) / np.maximum(either.sum(axis=(1, 2)), 1e-9))
    return np.argmax(overlap, axis=0)


def _related(middle: np.ndarray, scenes: Sequence[Scene]) -> np.ndarray:
    """Returns whether the middles (n, 2, 2) are in the relation of the scenes; True without one."""
    apart = middle[:, 0] - middle[:, 1]
    wanted = np.array([RELATIONS.get(scene.relation, (0, 0)) for scene in scenes])
    along = (apart * wanted).sum(axis=1)
    across = np.abs(apart).sum(axis=1) - np.abs(along)
    return ~wanted.any(axis=1) | (along > across)
