"""Protocols of text-to-image models: images with captions, such as 30,000 of COCO-2014.

Papers resize, crop and tokenize in unlike ways, and their numbers are comparable only within one
FAMILY; it is part of every protocol. Facts are from the released code: GigaGAN's evaluation.py,
which SiD-LSG's published numbers were measured with, DMD2's coco_evaluator.py, and SiD-LSG's
metrics of its training.
"""

import functools
import hashlib
import json
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from etils import epath
from PIL import Image

from distill_jax.data.decoding import decode
from distill_jax.data.listing import Listing, listing
from distill_jax.diffusion.resize import cubic_matrix
from distill_jax.evaluation.feature_networks import FeatureNetwork
from distill_jax.evaluation.quality import Score, measure
from distill_jax.evaluation.references import make_reference
from distill_jax.evaluation.text_scores import BATCH, Scorer
from distill_jax.runtime.files import absolute, read_bytes
from distill_jax.runtime.text import reason, short

MAX_CAPTIONS = 2**26  # Bytes of a file of captions; 30,000 of COCO have 1.6 MB.
COCO = 30_000  # Captions of the published protocols.
# SHA-256 of files of captions that are published.
KNOWN = {"edabd2a556026cbf5d36a5fffa35ad43d7ba71b72f6d640b727c1edefb7f1945": "DMD2's COCO-2014"}


class Family(NamedTuple):
    """How images are prepared for a score, and captions are tokenized.

    Attributes:
      side: side to which images are resized by Pillow's Lanczos filter on bytes; 0 for none.
      cropped: whether the central square is taken first; else images are stretched.
      darkened: whether pixels from 1 to 63 lose a level for CLIP, as GigaGAN's code rounds them
        down after a way through float32.
      torch: whether CLIP's size is reached by PyTorch's bicubic filter without antialiasing and
        rounding; else by Pillow's on bytes, of the shorter side, and then the central square.
      prefix: text before every caption for CLIP score.
      unescape: whether HTML entities in captions are replaced, as OpenAI's tokenizer does.
      resize: the resize of FID.
      words: the family in words, for protocols.
    """

    side: int
    cropped: bool
    darkened: bool
    torch: bool
    prefix: str
    unescape: bool
    resize: str
    words: str


PREFIX, SQUARE = "A photo depicts ", "central square, Lanczos to 256"
FAMILIES = {
    "plain": Family(0, False, False, False, "", False, "bicubic", "images as they are"),
    "gigagan": Family(256, True, True, False, PREFIX, True, "bicubic", SQUARE),
    "dmd2": Family(256, True, False, False, PREFIX, True, "bicubic", SQUARE),
    "sid_lsg_training": Family(
        256, False, False, True, "", True, "tf1", "stretched, Lanczos to 256"
    ),
}


class Captions(NamedTuple):
    """Pictures with their captions.

    Attributes:
      found: the folder.
      names: names of the pictures.
      captions: their captions.
      source: name and digest of the file of captions.
    """

    found: Listing
    names: list[str]
    captions: list[str]
    source: str


def read_captions(folder: epath.PathLike, file: epath.PathLike) -> Captions:
    """Reads which pictures of a folder, or of a zip, have which captions.

    Args:
      folder: the pictures.
      file: one caption a line for the pictures in the order of their names, where numbers count as
        numbers (2.png is before 10.png); or a .jsonl file with "file_name" and "text" a line.

    Raises:
      FileNotFoundError: if there is no file of captions.
      ValueError: if the numbers of pictures and captions differ, or a file cannot be read.
    """
    file, found = absolute(file), listing(pathlib.Path(str(absolute(folder))))
    content, names = read_bytes(file, MAX_CAPTIONS), sorted(found.files, key=_natural)
    try:
        captions = content.decode().splitlines()
        if file.suffix == ".jsonl":
            rows = [json.loads(line) for line in captions if line.strip()]
            names, captions = ([row[key] for row in rows] for key in ("file_name", "text"))
        if not all(isinstance(text, str) for text in (*names, *captions)):
            raise TypeError("a file_name or text is no string")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as captions ({reason(error)})") from error
    if len(names) != len(captions):
        raise ValueError(
            f"{found.root} has {len(names):,} pictures and {file} {len(captions):,} captions; "
            "expected one line for each picture"
        )
    if not captions:
        raise ValueError(f"{file} has no captions")
    if missing := [name for name in names if name not in found.files]:
        raise ValueError(
            f"{found.root} lacks {len(missing):,} of the pictures in {file}, such as "
            f"{short(missing[0])}"
        )
    digest = hashlib.sha256(content).hexdigest()
    source = f"{KNOWN.get(digest, file.name)}@{digest[:8]}"
    return Captions(found, names, captions, source)


def _natural(name: str) -> list[tuple[int, str]]:
    """Returns the key by which 2.png is before 10.png, as GigaGAN sorts them."""
    parts = re.split(r"([0-9]+)", name.lower())
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)]


def pictures(
    found: Listing, names: Sequence[str], change: Callable[[np.ndarray], np.ndarray]
) -> Iterator[np.ndarray]:
    """Yields batches of changed pictures, decoded on several threads.

    Raises:
      ValueError: for a picture that cannot be decoded, or of another size, with its name.
    """

    def opened(name: str) -> np.ndarray:
        return decode(found.read(name), f"{found.root}/{name}", change)

    with ThreadPoolExecutor() as pool:
        first = None
        for start in range(0, len(names), BATCH):
            batch = list(pool.map(opened, part := names[start : start + BATCH]))
            first = batch[0].shape if first is None else first
            for name, x in zip(part, batch, strict=True):
                if x.shape != first:
                    raise ValueError(
                        f"{name} in {found.root} is {x.shape[1]}x{x.shape[0]}, and {names[0]} "
                        f"{first[1]}x{first[0]}; expected pictures of one size, or a protocol "
                        "that resizes"
                    )
            yield np.stack(batch)


def prepared(x: np.ndarray, family: Family) -> np.ndarray:
    """Returns the picture (h, w, 3), uint8, at the side of the family."""
    if not family.side:
        return x
    x = _central(x, min(x.shape[:2])) if family.cropped else x
    size = family.side, family.side
    return np.asarray(Image.fromarray(x).resize(size, Image.Resampling.LANCZOS))


def for_clip(x: np.ndarray, family: Family, side: int) -> np.ndarray:
    """Returns a picture (h, w, 3), uint8, as (side, side, 3) from 0 to 255, maybe not rounded."""
    x = prepared(x, family)
    if family.darkened:
        x = x - ((x > 0) & (x < 64)).astype(np.uint8)
    if family.torch:
        rows, columns = (cubic_matrix(size, side).astype(np.float32) for size in x.shape[:2])
        return np.einsum("ih,hwc,jw->ijc", rows, x.astype(np.float32), columns, optimize=True)
    height, width = x.shape[:2]
    short_side = min(height, width)
    size = (side * width // short_side, side * height // short_side)
    return _central(np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BICUBIC)), side)


def _central(x: np.ndarray, side: int) -> np.ndarray:
    """Returns the central square; halves of a pixel are rounded to even, as torchvision does."""
    top, left = (round((size - side) / 2) for size in x.shape[:2])
    return x[top : top + side, left : left + side]


def text_scores(
    given: Captions, name: str, scorers: Sequence[Scorer]
) -> tuple[dict[str, Score], list[str]]:
    """Returns the scores of images with their captions, and notes about captions that were cut.

    Args:
      given: the images and captions.
      name: a key of FAMILIES; it counts for CLIP score. PickScore and HPSv2 take images and
        captions as they are ("plain"), as their code does.
      scorers: the networks.
    """
    scores, notes = {}, []
    for scorer in scorers:
        chosen = name if scorer.kind.name == "CLIP score" else "plain"
        family = FAMILIES[chosen]
        change = functools.partial(for_clip, family=family, side=scorer.side)
        images = scorer.images(pictures(given.found, given.names, change))
        texts, cut = scorer.texts(given.captions, family.prefix, family.unescape)
        found = scorer.scores(images, texts)
        size = "PyTorch's bicubic, not rounded" if family.torch else "Pillow's bicubic of bytes"
        facts = {
            "family": f"{chosen} ({family.words})",
            "network": scorer.network,
            "resize": f"{size}, to {scorer.side}",
            "prefix": repr(family.prefix),
            "captions": given.source,
            "n": len(found),
            "value": scorer.kind.convention,
        }
        protocol = ", ".join(f"{key} {value}" for key, value in facts.items())
        error = float(found.std() / np.sqrt(len(found)))
        remark = _remark(chosen, len(found), scorer.network)
        scores[scorer.kind.name] = Score(float(found.mean()), error, protocol, remark)
        notes += cut
    return scores, list(dict.fromkeys(notes))


def _remark(family: str, count: int, network: str = "CLIP-g14") -> str:
    """Returns how a number differs from the published ones of its family, or ""."""
    if family == "plain":
        return ""
    parts = []
    if count != COCO:
        parts.append(f"of {COCO:,} captions, and this one is of {count:,}")
    if not network.startswith("CLIP-g14"):
        parts.append("of ViT-g/14")
    return f"the published numbers of {family} are {' and '.join(parts)}" if parts else ""


def distances(
    given: Captions, name: str, real: epath.PathLike, network: FeatureNetwork
) -> dict[str, Score]:
    """Returns the distances of images to a folder of real ones, both prepared as the family does.

    Args:
      given: the images.
      name: a key of FAMILIES.
      real: the folder or zip of real images, such as COCO's val2014, all of which are taken.
      network: the feature network.

    Raises:
      ValueError: for a family without a size, if the images are not of one size; and as `measure`.
    """
    family = FAMILIES[name]
    change = functools.partial(prepared, family=family)
    found = listing(pathlib.Path(str(absolute(real))))
    images = pictures(found, list(found.files), change)
    reference = make_reference(found.root.name, "", images, network)
    made = {"family": f"{name} ({family.words})", "captions": given.source}
    scores = measure(pictures(given.found, given.names, change), network, reference, made)
    remark = _remark(name, len(given.names))
    return {key: score.with_remark(remark) for key, score in scores.items()}
