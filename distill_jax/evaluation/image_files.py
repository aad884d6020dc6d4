"""Many images in files, as evaluators of other projects read them: an .npz of ADM, or PNGs.

A set of images is written beside its place, in OUT.partial, and gets its name when it is whole. The
same command goes on where another one was stopped.
"""

import contextlib
import functools
import io
import json
import math
import os
import pathlib
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from etils import epath

from distill_jax.data import decoding
from distill_jax.data.captions import TABLE
from distill_jax.evaluation.pictures import is_whole
from distill_jax.runtime.files import PARTIAL, flush, read_json, written
from distill_jax.runtime.text import plain, printable, reason

NOTE = "images.json"  # The file of a folder that says how its images were made.
BATCH = 64  # Number of images that are read at a time.
LOSSY = (".jpg", ".jpeg", ".webp")


class Unfinished:
    """A set of images that is being written.

    Args:
      out: an .npz file, or a folder of PNGs; its parent is created.
      num: number of images.
      shape: shape (h, w, c) of an image; c is 1 or 3.
      made: how the images are made, plain JSON; only the same set is resumed.

    Raises:
      ValueError: for images of another shape, a folder that is not empty, a bucket, and the
        remains of another set.
    """

    def __init__(self, out: epath.Path, num: int, shape: tuple[int, ...], made: Mapping[str, Any]):
        if "://" in str(out):
            raise ValueError(f"--out={out} is in a bucket; write to a local disk, and copy it")
        if len(shape) != 3 or shape[-1] not in (1, 3) or shape[:2] == (1, 1):
            raise ValueError(
                f"samples of shape {shape} are no pictures of 1 or 3 channels; write them to a "
                "file, --out=x.npy"
            )
        if out.is_dir() and (out.suffix == ".npz" or any(out.iterdir())):
            raise ValueError(f"--out={out} is a folder with content; remove it, or name another")
        self._out, self._num, self._shape, self._made = out, num, shape, {"n": num, **made}
        self._partial = out.parent / f"{out.name}{PARTIAL}"
        self._partial.mkdir(parents=True, exist_ok=True)
        note = self._partial / NOTE
        found = _note(note) if note.exists() else None
        if found is None and any(self._partial.iterdir()):
            raise ValueError(f"{self._partial} is in the way; remove it, or name another --out")
        if found not in (None, json.loads(json.dumps(self._made))):
            raise ValueError(
                f"{self._partial} was begun with other flags ({_listed(found or {})}); remove it, "
                "or start that command again"
            )
        with written(note) as part:
            part.write_text(json.dumps(self._made))
        self._pixels = self._partial / "pixels" if out.suffix == ".npz" else None
        if self._pixels is not None:
            self._pixels.touch()

    @property
    def done(self) -> int:
        """Number of images that an earlier command wrote."""
        if self._pixels is None:
            names = (self._partial / _name(i) for i in range(self._num))
            return next((i for i, name in enumerate(names) if not is_whole(name)), self._num)
        return min(self._num, self._pixels.stat().length // int(np.prod(self._rgb)))

    @property
    def _rgb(self) -> tuple[int, ...]:
        return (*self._shape[:2], 3)

    def add(self, first: int, x: np.ndarray) -> None:
        """Writes images first, first + 1, ...: uint8 (n, h, w, c), see pixels.to_uint8."""
        if self._pixels is None:
            for i, image in enumerate(x, first):
                file = io.BytesIO()
                grey = image.shape[-1] == 1
                PIL.Image.fromarray(image[..., 0] if grey else image).save(file, format="PNG")
                (self._partial / _name(i)).write_bytes(file.getvalue())
            return
        x = np.broadcast_to(x, (len(x), *self._rgb))  # ADM's evaluator takes three channels.
        with open(self._pixels, "r+b") as pixels:
            pixels.seek(first * int(np.prod(self._rgb)))
            pixels.write(x.tobytes())
            pixels.truncate()
        flush(self._pixels)

    def finish(self, label: np.ndarray | None, prompts: Sequence[str] = ()) -> None:
        """Gives the set its name, once all images are added.

        Labels only go into an .npz, and prompts into a folder, as captions in metadata.jsonl.
        """
        if self._pixels is None:
            if prompts:
                rows = ({"file_name": _name(i), "text": text} for i, text in enumerate(prompts))
                (self._partial / TABLE).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
            os.sync()  # One call for tens of thousands of files.
            if self._out.exists():
                self._out.rmdir()
            self._partial.rename(self._out)
            flush(self._out.parent)
            return
        with (
            written(self._partial / "whole.npz") as file,
            zipfile.ZipFile(file, "w") as archive,
            open(self._pixels, "rb") as pixels,
        ):
            with archive.open(zipfile.ZipInfo("arr_0.npy"), "w", force_zip64=True) as entry:
                header = {"descr": "|u1", "fortran_order": False, "shape": (self._num, *self._rgb)}
                np.lib.format.write_array_header_1_0(entry, header)
                shutil.copyfileobj(pixels, entry, 2**20)
            more = {} if label is None else {"arr_1": np.asarray(label, np.int64)}
            for name, array in {**more, "made": np.asarray(json.dumps(self._made))}.items():
                with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w") as entry:
                    np.lib.format.write_array(entry, array, allow_pickle=False)
        (self._partial / "whole.npz").replace(self._out)
        flush(self._out.parent)
        self._partial.rmtree()


class ImageSet(NamedTuple):
    """Images to measure.

    Attributes:
      name: name of the file or folder.
      num: number of images.
      made: how they were made, such as weights, sampler, w and seed, as short texts; {} if it is
        not said.
      batches: function that yields them, uint8 (n, h, w, c); it raises ValueError for others.
      remark: a warning about them, or "".
    """

    name: str
    num: int
    made: Mapping[str, str]
    batches: Callable[[], Iterator[np.ndarray]]
    remark: str = ""


def read(path: epath.Path) -> ImageSet:
    """Reads images: a folder of pictures, or uint8 arrays (n, h, w, c) in an .npz or .npy.

    Folders in a folder are read too, in the order of the names. Memory is needed for one batch.

    Raises:
      FileNotFoundError: if there is nothing.
      ValueError: for what holds no images; `batches` raises it for images of unlike sizes, and for
        arrays that are not uint8 or have no value above 1.
    """
    if not path.exists():
        raise FileNotFoundError(f"--images={path} does not exist; expected a folder, .npz or .npy")
    if path.is_dir():
        inside = sorted(pathlib.Path(path).rglob("*"))
        files = [epath.Path(file) for file in inside if _is_picture(file, path)]
        if not files:
            raise ValueError(f"--images={path} has no pictures: {', '.join(decoding.SUFFIXES)}")
        made = _facts(_note(path / NOTE)) if (path / NOTE).exists() else {}
        lossy = sum(file.suffix.lower() in LOSSY for file in files)
        remark = f"{lossy:,} pictures are in lossy formats, which changes distances" * (lossy > 0)
        checked = functools.partial(_checked, path, functools.partial(_pictures, files))
        return ImageSet(path.name, len(files), made, checked, remark)
    if path.suffix not in (".npz", ".npy"):
        raise ValueError(f"--images={path} is neither a folder nor an .npz or .npy file")
    made = _facts(_made(path)) if path.suffix == ".npz" else {}
    with _array(path) as (shape, _, _):
        num = shape[0]
    return ImageSet(path.name, num, made, functools.partial(_checked, path, lambda: _rows(path)))


def _checked(path: epath.Path, batches: Callable[[], Iterator[np.ndarray]]) -> Iterator[np.ndarray]:
    """Yields uint8 images; raises ValueError for others, at the end if no pixel is above 1."""
    largest = 0
    for x in batches():
        if x.dtype != np.uint8 or x.ndim != 4 or x.shape[-1] not in (1, 3) or 0 in x.shape:
            raise ValueError(
                f"{path} holds {x.dtype} of shape {x.shape[1:]} per image; expected uint8 from 0 "
                "to 255, (h, w, 1) or (h, w, 3), as the sample command writes it with --out=x.npz"
            )
        largest = max(largest, int(x.max()))
        yield x
    if largest <= 1:
        raise ValueError(
            f"{path} has no value above {largest}; expected uint8 from 0 to 255: pixels in [0, 1] "
            "or [-1, 1] were converted without being scaled"
        )


def _pictures(files: list[epath.Path]) -> Iterator[np.ndarray]:
    shape: tuple[int, ...] | None = None
    for start in range(0, len(files), BATCH):
        images = []
        for file in files[start : start + BATCH]:
            image = decoding.decode(decoding.read(file), str(file))
            shape = shape or image.shape
            if image.shape != shape:
                raise ValueError(
                    f"{file} is {image.shape[1]}x{image.shape[0]}, and {files[0].name} is "
                    f"{shape[1]}x{shape[0]}; expected pictures of one size"
                )
            images.append(image)
        yield np.stack(images)


@contextlib.contextmanager
def _array(path: epath.Path) -> Iterator[tuple[tuple[int, ...], np.dtype, Any]]:
    """Opens an .npy file, or arr_0 in an .npz: yields its shape, its dtype, and the rest to read.

    Whatever the file raises becomes one ValueError.
    """
    try:
        with contextlib.ExitStack() as stack:
            file: Any = stack.enter_context(path.open("rb"))
            if path.suffix == ".npz":
                archive = stack.enter_context(zipfile.ZipFile(file))
                file = stack.enter_context(archive.open("arr_0.npy"))
            old = np.lib.format.read_magic(file) == (1, 0)
            form = np.lib.format
            shape, by_columns, dtype = (
                form.read_array_header_1_0 if old else form.read_array_header_2_0
            )(file)
            size = math.prod(shape[1:]) * dtype.itemsize
            if by_columns or dtype.hasobject or not shape or size > 4 * decoding.MAX_PIXELS:
                raise ValueError(f"it holds {dtype} of shape {shape}")
            yield shape, dtype, file
    except OSError:
        raise
    except Exception as error:  # zipfile, numpy and zlib have many.
        raise ValueError(
            f"{path} cannot be read as images ({reason(error)}); expected uint8 (n, h, w, c) in an "
            ".npy file, or as arr_0 in an .npz"
        ) from error


def _rows(path: epath.Path) -> Iterator[np.ndarray]:
    """Yields the rows of the array in a file, BATCH at a time."""
    with _array(path) as (shape, dtype, file):
        size = math.prod(shape[1:]) * dtype.itemsize
        for start in range(0, shape[0], BATCH):
            count = min(BATCH, shape[0] - start)
            content = file.read(count * size)
            if len(content) < count * size:
                raise ValueError(f"it ends in image {start + len(content) // max(1, size)}")
            yield np.frombuffer(content, dtype).reshape(count, *shape[1:])


def _made(path: epath.Path) -> dict[str, Any]:
    """Returns what an .npz says of its images; {} if it says nothing."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            text = str(arrays["made"]) if "made" in arrays.files else "{}"
        found = json.loads(text[:10_000])
    except OSError:
        raise
    except Exception:  # A damaged file has its message when its images are read.
        found = {}
    return found if isinstance(found, dict) else {}


def _facts(made: Mapping[str, Any]) -> dict[str, str]:
    """Returns what a file, which may come from anybody, says of its images, as short texts."""
    facts = list(made.items())[:16]
    return {plain(key, 30): plain(value, 60) for key, value in facts if key != "n"}


def _note(path: epath.Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(path)
    return content


def _listed(made: Mapping[str, Any]) -> str:
    return printable(", ".join(f"{key} {value}" for key, value in made.items()))[:300]


def _is_picture(file: pathlib.Path, root: epath.Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.suffix.lower() in decoding.SUFFIXES and not hidden and file.is_file()


def _name(i: int) -> str:
    return f"{i:06d}.png"
