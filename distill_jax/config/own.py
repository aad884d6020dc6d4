"""A chain for a folder of one's own images: its network and updates follow from what is there."""

import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict
from PIL import Image

from distill_jax.config.chains import base, halvings, pipeline, stage

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
SPLITS = ("train", "training", "val", "valid", "validation", "test", "testing")
SIDES = (32, 64, 128)
MULTIPLIERS = {32: (1, 2, 2), 64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4)}
OPENED = 100  # Images whose sizes are read.
# Channels, dropout and the teacher's updates for fewer images than the first number.
TIERS = ((2_000, 64, 0.2, 20_000), (20_000, 96, 0.15, 60_000), (10**12, 128, 0.1, 200_000))


class OwnImages(NamedTuple):
    """The images of a folder.

    Attributes:
      path: path of the folder.
      number: number of images.
      side: median of their shorter sides in pixels.
      labelled: whether they have classes.
    """

    path: str
    number: int
    side: float
    labelled: bool


def own_images(path: str) -> OwnImages:
    """Looks at a folder of images, in one of the layouts of docs/data.md.

    Raises:
      ValueError: for a folder without images that can be read.
    """
    top = pathlib.Path(path).expanduser()
    names = [file.relative_to(top) for file in top.rglob("*") if file.suffix.lower() in SUFFIXES]
    names = sorted(name for name in names if not any(part[0] == "." for part in name.parts))
    opened = [_shorter(top / name) for name in names[:: len(names) // OPENED + 1]]
    sides = [side for side in opened if side]
    if not sides:
        raise ValueError(
            f"unknown size {path!r} of the config; known: full, smoke, or a folder with images "
            f"({' '.join(SUFFIXES)}), and there are none; unpack a zip first"
        )
    table = top / "dataset.json"
    if table.is_file():
        labelled = _has_labels(table)
    else:
        folders = [name.parts[name.parts[0] in SPLITS : -1] for name in names]
        labelled = any(folders) and not (top / "metadata.jsonl").is_file()
    return OwnImages(path, len(names), statistics.median(sides), labelled)


def _has_labels(table: pathlib.Path) -> bool:
    """Returns whether a dataset.json has labels; the dataset refuses a damaged one."""
    try:
        content = json.loads(table.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and content.get("labels") is not None


def _shorter(path: pathlib.Path) -> int:
    """Returns the shorter side of an image in pixels; 0 if it cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return min(image.size)
    except (OSError, ValueError, Image.DecompressionBombError):
        return 0


def folder_chain(images: OwnImages, words: Sequence[str] = (), start: int = 32) -> ConfigDict:
    """Returns the chain teacher -> (guided, with classes) -> start, ..., 2, 1 steps for a folder.

    Args:
      images: what is there, from own_images.
      words: "small" for the network and the updates that a CPU trains in an hour; a side in SIDES,
        such as "64". By default it is the largest up to 64 that needs no enlarging.

      start: sampling steps of the first halving.

    Raises:
      ValueError: for another word.
    """
    known = ["small", *map(str, SIDES)]
    if unknown := [word for word in words if word not in known]:
        raise ValueError(
            f"unknown word {unknown[0]!r} after the folder; known: {', '.join(known)}, such as "
            "configs/folder.py:DIR,small,64"
        )
    small = "small" in words
    fitting = [each for each in SIDES[: 1 if small else 2] if each <= images.side]
    side = max(map(int, set(words) - {"small"}), default=(fitting or SIDES)[-1 if fitting else 0])
    channels, dropout, updates = next(tier[1:] for tier in TIERS if images.number < tier[0])
    if small:
        channels, updates = 32, 2_000
    config = base()
    config.data = dict(name="folder", path=images.path, size=side, labelled=images.labelled)
    unet: dict[str, Any] = dict(channels=channels, embedding=4 * channels, dropout=dropout)
    unet.update(multipliers=MULTIPLIERS[side], blocks=1 if small else 2, attention=(8, 16), heads=1)
    config.model = {"name": "unet", **unet}
    config.batch_size = 16 if small else 64
    config.save_every = min(5_000, updates // 4)
    config.evaluate.num_samples = 100 if small else 2_000
    rates: dict[str, Any] = dict(learning_rate=2e-4, ema_decay=0.9999, ema_ramp=0.05, num_steps=64)
    rates["warmup"] = updates // 20
    teacher = stage("teacher", "diffusion", steps=updates, decay_to=1.0, **rates)
    rounds: dict[Any, int] = {"default": updates // 20, 2: updates // 8, 1: updates // 8}
    students: dict[str, Any] = dict(
        steps=rounds, learning_rate=1e-4, ema_decay=0.999, ema_ramp=0.05
    )
    if not images.labelled:
        config.evaluate.w = (0.0,)
        config.stages = pipeline(teacher, *halvings(start, **students))
        return config
    w_range = (0.0, 4.0)
    config.evaluate.w = (0.0, 1.0, 4.0)
    guided = stage(
        "guided", "guided", steps=updates // 4, w_range=w_range, new=("w_embed",), **rates
    )
    config.stages = pipeline(teacher, guided, *halvings(start, w_range=w_range, **students))
    return config
