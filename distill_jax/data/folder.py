"""A dataset from any folder of images."""

import functools
import pathlib
from collections.abc import Sequence
from typing import Annotated

from distill_jax.data.decoding import SUFFIXES, read
from distill_jax.data.images import MIN_IMAGES, SIDE, Decoded, Encoded, Images
from distill_jax.data.resizing import RESIZERS
from distill_jax.runtime.options import choice

TEST_EVERY = 10  # Every tenth file, from the first, is in the test split.
# The smallest number of files for which the test split has MIN_IMAGES["test"] of them.
MIN_FILES = (MIN_IMAGES["test"] - 1) * TEST_EVERY + 1


def folder(
    path: str,
    size: Annotated[int, SIDE],
    labelled: bool = True,
    flip: bool = True,
    resize: Annotated[str, choice(RESIZERS)] = "area",
) -> Images:
    """Builds a dataset of the images in path/class/*.png, or in path/*.png without classes.

    Classes are numbered in alphabetical order. Suffixes are SUFFIXES, in either case. Every tenth
    file in sorted order is in the test split. Names that begin with "." are ignored.

    Args:
      path: path of the folder.
      size: side of the square images in pixels.
      labelled: whether the classes condition the network.
      flip: whether half of the training images are mirrored.
      resize: name in RESIZERS of the function that makes images square and of that size.

    Raises:
      ValueError: for a folder with too few images, or with images both in it and in subfolders.
    """
    root = pathlib.Path(path).expanduser()
    within, beside = _image_files(root, "*/*"), _image_files(root, "*")
    if within and beside:
        raise ValueError(
            f"{root} has images in {within[0].parent.name}/ and others, such as {beside[0].name}, "
            "beside it; expected folder/class/*.png, or folder/*.png without classes"
        )
    files = within or beside
    if len(files) < MIN_FILES:
        there = f"has {len(files)} images" if root.is_dir() else "is no folder"
        raise ValueError(
            f"{root} {there}; expected at least {MIN_FILES} with a suffix of "
            f"{', '.join(SUFFIXES)}, as folder/class/*.png, or folder/*.png without classes: one "
            f"of every {TEST_EVERY} is for testing, and the report needs {MIN_IMAGES['test']} such"
        )
    classes = sorted({file.parent.name for file in files})
    number = {name: label for label, name in enumerate(classes)}
    labels = [number[file.parent.name] for file in files]
    listed = list(zip(files, labels, strict=True))
    train = [entry for i, entry in enumerate(listed) if i % TEST_EVERY]
    parts = (functools.partial(_Files, part) for part in (train, listed[::TEST_EVERY]))
    first, second = (Decoded(part, size, resize=resize) for part in parts)
    return Images(first, second, len(classes), labelled, flip)


def _image_files(root: pathlib.Path, pattern: str) -> list[pathlib.Path]:
    """Returns the sorted image files that match a pattern, without hidden ones."""
    return sorted(
        file
        for file in root.glob(pattern)
        if file.suffix.lower() in SUFFIXES
        and not any(part.startswith(".") for part in file.relative_to(root).parts)
    )


class _Files:
    """A list of image files with their labels."""

    def __init__(self, files: Sequence[tuple[pathlib.Path, int]]):
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Encoded:
        file, label = self._files[index]
        return Encoded(read(file), label, str(file))
