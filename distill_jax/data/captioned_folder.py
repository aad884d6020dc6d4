"""A dataset from a folder of pictures with captions, or a zip of one."""

import functools
import hashlib
import pathlib
from typing import Annotated

import numpy as np

from distill_jax.data.base import Summary
from distill_jax.data.captions import Captioned, read_captions
from distill_jax.data.folder import Files, readable
from distill_jax.data.images import MIN_IMAGES, SIDE, Decoded
from distill_jax.data.layouts import TEST_SHARE, hash_of
from distill_jax.data.listing import listing
from distill_jax.data.resizing import RESIZERS
from distill_jax.runtime.options import choice


def captioned_folder(
    path: str,
    size: Annotated[int, SIDE],
    resize: Annotated[str, choice(RESIZERS)] = "area",
    flip: bool = False,
    skip_unreadable: bool = False,
) -> Captioned:
    """Builds a dataset of the pictures in a folder or zip that have captions; see read_captions.

    A tenth is in the test split, chosen by a hash of the first caption, so that no caption is in
    both. Pictures in any folder below are read.

    Args:
      path: path of the folder or zip.
      size: side of the square images in pixels.
      resize: name in RESIZERS of the function that makes images square and of that size.
      flip: whether half of the training images are mirrored, which turns left to right.
      skip_unreadable: see folder.

    Raises:
      ValueError: for too few pictures, and as read_captions.
    """
    found = listing(pathlib.Path(path).expanduser().absolute())
    if skip_unreadable:
        found = readable(found)
    texts = read_captions(found)
    for name in found.files:
        if name not in texts:
            found.passed.add("without a caption", name)
    names = sorted(texts)
    held_out = [hash_of(texts[name][0]) < TEST_SHARE for name in names]
    files, rows, counts = {}, {}, {}
    digest = hashlib.sha256()
    for split, out in (("train", False), ("test", True)):
        rows[split] = np.array([i for i, held in enumerate(held_out) if held == out], int)
        counts[split] = len(rows[split])
        if counts[split] < MIN_IMAGES[split]:
            raise ValueError(
                f"{found.root} has {len(names)} pictures with captions, {counts[split]} of them "
                f"in the {split} split; expected at least {MIN_IMAGES[split]}: add captions that "
                "differ"
            )
        files[split] = [(names[row], int(row)) for row in rows[split]]
        for name, _ in files[split]:
            line = "\0".join((name, *texts[name], str(found.files[name])))
            digest.update(line.encode("utf-8", "surrogateescape") + b"\n")
    train, test = (
        Decoded(functools.partial(Files, found, files[split]), size, resize=resize)
        for split in ("train", "test")
    )
    different = len({text for name in names for text in texts[name]})
    notes = [f"{different:,} different captions", "split by caption", "upright by EXIF"]
    prints = digest.hexdigest()[:16]
    summary = Summary(counts, notes=notes, passed=found.passed.notes(), fingerprint=prints)
    return Captioned(train, test, rows, [texts[name] for name in names], flip, summary)
