"""A dataset from any folder of images, or a zip of one."""

import functools
import hashlib
import pathlib
from collections.abc import Sequence
from typing import Annotated

from distill_jax.data import decoding
from distill_jax.data.base import Summary
from distill_jax.data.images import SIDE, Decoded, Encoded, Images, in_threads
from distill_jax.data.layouts import layout
from distill_jax.data.listing import Listing, listing
from distill_jax.data.resizing import RESIZERS
from distill_jax.runtime.options import choice

CLASSES = ("folders", "prefixes")
DECODED_BYTES = 2**26  # Pictures of together so many bytes are decoded whole to check them.


def folder(
    path: str,
    size: Annotated[int, SIDE],
    labelled: bool = True,
    flip: bool = True,
    resize: Annotated[str, choice(RESIZERS)] = "area",
    classes: Annotated[str, choice(CLASSES)] = "folders",
    skip_unreadable: bool = False,
) -> Images:
    """Builds a dataset of the images in a folder or zip, see layouts.layout for what it may hold.

    Suffixes are decoding.SUFFIXES, in either case. A tenth of the images is in the test split,
    chosen by a hash of their names, unless the folder has splits. Names that begin with "." are
    ignored. What else is passed over is in the summary.

    Args:
      path: path of the folder or zip.
      size: side of the square images in pixels.
      labelled: whether the classes condition the network.
      flip: whether half of the training images are mirrored.
      resize: name in RESIZERS of the function that makes images square and of that size.
      classes: "folders", or "prefixes" for names such as cat_001.png.
      skip_unreadable: whether pictures that cannot be read are passed over. All are opened first,
        in every process and command, which takes minutes for a million.

    Raises:
      ValueError: for a folder with too few images, or of another layout.
    """
    found = listing(pathlib.Path(path).expanduser().absolute())
    if skip_unreadable:
        found = readable(found)
    arranged = layout(found, classes == "prefixes")
    splits = arranged.train, arranged.test
    first, second = (
        Decoded(functools.partial(Files, found, part), size, resize=resize) for part in splits
    )
    counts = dict(zip(("train", "test"), map(len, splits), strict=True))
    notes = [*arranged.notes, "upright by EXIF"]
    prints = _fingerprint(found, splits)
    summary = Summary(counts, arranged.classes, notes, found.passed.notes(), prints)
    return Images(first, second, len(arranged.classes), labelled, flip, summary)


class Files:
    """A list of image files with their labels."""

    def __init__(self, found: Listing, files: Sequence[tuple[str, int]]):
        self._found, self._files = found, files
        self._whole = sum(found.files[name] for name, _ in files) <= DECODED_BYTES

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Encoded:
        name, label = self._files[index]
        return Encoded(self._found.read(name), label, str(self._found.root / name))

    def check(self, index: int) -> None:
        """Raises ValueError or OSError for a picture that cannot be read."""
        name, _ = self._files[index]
        _check(self._found, name, self._whole)


def _check(found: Listing, name: str, whole: bool) -> None:
    place = str(found.root / name)
    if whole:
        decoding.decode(found.read(name), place)
        return
    with found.open(name) as file:
        decoding.check(file, place)


def readable(found: Listing) -> Listing:
    """Returns the listing without the pictures that cannot be read, which are passed over."""
    whole = sum(found.files.values()) <= DECODED_BYTES

    def fails(name: str) -> bool:
        try:
            _check(found, name, whole)
        except (ValueError, OSError):
            return True
        return False

    names = list(found.files)
    bad = {name for name, failed in zip(names, in_threads(fails, names), strict=True) if failed}
    for name in sorted(bad):
        found.passed.add("unreadable pictures", name)
    return found._replace(files={n: size for n, size in found.files.items() if n not in bad})


def _fingerprint(found: Listing, splits: Sequence[Sequence[tuple[str, int]]]) -> str:
    """Returns a hash of the names, labels and sizes in each split; nothing is opened."""
    digest = hashlib.sha256()
    for split in splits:
        for name, label in split:
            line = f"{name}\0{label}\0{found.files[name]}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
        digest.update(b"\n")
    return digest.hexdigest()[:16]
