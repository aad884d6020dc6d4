"""A dataset from a folder of pictures with captions, or a zip of one."""

import functools
import hashlib
from typing import Annotated

import numpy as np

from distill_jax.data.base import Summary, count_of
from distill_jax.data.captions import Captioned, read_captions
from distill_jax.data.folder import Files, readable
from distill_jax.data.images import MIN_IMAGES, SIDE, Decoded
from distill_jax.data.layouts import TEST_SHARE, hash_of
from distill_jax.data.resizing import RESIZERS
from distill_jax.data.shards import captioned_listing
from distill_jax.runtime.options import choice


def captioned_folder(
    path: str,
    size: Annotated[int, SIDE],
    resize: Annotated[str, choice(RESIZERS)] = "area",
    flip: bool = False,
    skip_unreadable: bool = False,
) -> Captioned:
    """Builds a dataset of the pictures of a folder, zip or tars that have captions.

    See read_captions for the captions, and captioned_listing for tars.

    A tenth is in the test split, chosen by a hash of the first caption, so that no caption is in
    both. Pictures in any folder below are read.

    Args:
      path: path of the folder, zip or tar, or a pattern of WebDataset such as {000..012}.tar.
      size: side of the square images in pixels.
      resize: name in RESIZERS of the function that makes images square and of that size.
      flip: whether half of the training images are mirrored, which turns left to right.
      skip_unreadable: see folder; the rest of a damaged tar is passed over too.

    Raises:
      ValueError: for too few pictures, and as read_captions.
    """
    found = captioned_listing(path, skip_unreadable)
    texts = read_captions(found)
    if skip_unreadable:
        found = readable(found)
        texts = {name: given for name, given in texts.items() if name in found.files}
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
    captions = count_of(text for name in names for text in texts[name])
    notes, passed = ["split by caption", "upright by EXIF"], found.passed.notes()
    prints = digest.hexdigest()[:16]
    summary = Summary(counts, (), notes, passed, prints, captions)
    return Captioned(train, test, rows, [texts[name] for name in names], flip, summary)
