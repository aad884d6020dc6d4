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
# The network of "small" and its codec. Its cost is matrix products, which a CPU does several times
# faster than the convolutions of a UNet.
SMALL = dict(name="dit", patch=1, width=128, blocks=6, heads=4, expand=3)
SMALL_CODEC = dict(name="patch_pca", patch=4, channels=24, power=0.5)
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
        fault = "has none; unpack a zip first" if top.exists() else "does not exist"
        raise ValueError(
            f"unknown size {path!r} of the config; known: full, smoke, or a folder with images "
            f"({' '.join(SUFFIXES)}); {top.absolute()} {fault}"
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
      words: "small" for what a CPU trains in a quarter of an hour, a transformer in the latents of
        a codec whose first halving has 16 steps; a side in SIDES, such as "64". By default it is
        the largest up to 64, or 32 for "small", that needs no enlarging.
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
    config = base()
    config.data = dict(name="folder", path=images.path, size=side, labelled=images.labelled)
    rates: dict[str, Any] = dict(learning_rate=2e-4, ema_decay=0.9999, ema_ramp=0.05, num_steps=64)
    channels, dropout, updates = next(tier[1:] for tier in TIERS if images.number < tier[0])
    if small:
        updates, start = 2_000, 16
        config.codec, config.model = SMALL_CODEC, SMALL
        config.batch_size, config.updates_per_call, config.optimizer.b2 = 32, 10, 0.99
        config.evaluate.num_samples = 100
        rates.update(learning_rate=1e-3, num_steps=32)
    else:
        unet: dict[str, Any] = dict(channels=channels, embedding=4 * channels, dropout=dropout)
        unet.update(multipliers=MULTIPLIERS[side], blocks=2, attention=(8, 16), heads=1)
        config.model, config.batch_size = {"name": "unet", **unet}, 64
    config.save_every = min(5_000, updates // 4)
    _stages(config, images.labelled, updates, start, {**rates, "warmup": updates // 20})
    return config


def _stages(
    config: ConfigDict, labelled: bool, updates: int, start: int, rates: dict[str, Any]
) -> None:
    """Sets the stages of a config, and the strengths of its report, from the teacher's rates."""
    teacher = stage("teacher", "diffusion", steps=updates, decay_to=1.0, **rates)
    rounds: dict[Any, int] = {"default": updates // 20, 2: updates // 8, 1: updates // 8}
    students: dict[str, Any] = dict(
        steps=rounds, learning_rate=rates["learning_rate"] / 2, ema_decay=0.999, ema_ramp=0.05
    )
    if not labelled:
        config.evaluate.w = (0.0,)
        config.stages = pipeline(teacher, *halvings(start, **students))
        return
    w_range = (0.0, 4.0)
    config.evaluate.w = (0.0, 1.0, 4.0)
    guided = stage(
        "guided", "guided", steps=updates // 4, w_range=w_range, new=("w_embed",), **rates
    )
    config.stages = pipeline(teacher, guided, *halvings(start, w_range=w_range, **students))
