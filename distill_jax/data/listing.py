"""The pictures in a folder or a zip file: names and sizes, and what is passed over."""

import collections
import contextlib
import io
import os
import pathlib
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from distill_jax.data.decoding import MAX_BYTES, SUFFIXES

TABLES = ("dataset.json", "metadata.jsonl")  # Files that describe pictures; see data.layouts.
MAX_TABLE = 2**28  # Limit of such a file in bytes; EDM's of ImageNet has 50 MB, COCO's 92 MB.
COCO = re.compile(r"captions_(\w+)\.json")  # Annotations with captions; the name has the split's.
MAX_DEPTH = 8  # Folders that are nested deeper are not opened.
MAX_RATIO = 100  # Limit of the compression in a zip; that of pictures is near 1.


class Passed:
    """A count of what was passed over for each reason, with the first name."""

    def __init__(self) -> None:
        self._counts: collections.Counter[str] = collections.Counter()
        self._first: dict[str, str] = {}

    def add(self, reason: str, name: str, count: int = 1) -> None:
        """Adds `count` of a reason; `name` is that of one of them."""
        self._counts[reason] += count
        self._first.setdefault(reason, name)

    def notes(self) -> list[str]:
        """Returns one text for each reason, the most frequent first."""
        return [f"{n:,} {why} ({self._first[why]})" for why, n in self._counts.most_common()]


class Listing(NamedTuple):
    """The pictures in a folder or a zip file.

    Attributes:
      root: path of the folder or zip.
      files: number of bytes by name, the path below the root with "/", in alphabetical order.
      folders: names of the folders, in the same form.
      tables: names of the files in TABLES, and of COCO's captions.
      texts: names of the .txt files, which may hold captions; in tars also of the .json files.
      passed: what was passed over; those who read the listing add to it.
      open: opens a file by name.
    """

    root: pathlib.Path
    files: dict[str, int]
    folders: list[str]
    tables: list[str]
    texts: list[str]
    passed: Passed
    open: Callable[[str], Any]

    def read(self, name: str, limit: int = MAX_BYTES) -> bytes:
        """Returns the content of a file; raises ValueError if it has more than `limit` bytes."""
        with self.open(name) as file:
            data: bytes = file.read(limit + 1)
        if len(data) > limit:
            raise ValueError(f"{self.root / name} has more than {limit:,} bytes")
        return data


def listing(root: pathlib.Path) -> Listing:
    """Lists a folder or a zip; hidden names are ignored, and links to folders and files followed.

    Raises:
      ValueError: if the path is neither.
    """
    if root.is_dir():
        found = Listing(root, {}, [], [], [], Passed(), lambda name: (root / name).open("rb"))
        _walk(found, root, "", ())
    elif root.is_file():
        found = _zipped(root)
    else:
        raise ValueError(f"{root} is no folder; expected one with pictures, or a zip of one")
    files = dict(sorted(found.files.items()))
    return found._replace(files=files, folders=sorted(found.folders))


def _walk(found: Listing, folder: pathlib.Path, prefix: str, above: tuple[Any, ...]) -> None:
    """Adds the content of a folder; `above` identifies the folders that it is in."""
    status = folder.stat()
    place = status.st_dev, status.st_ino
    if place in above or len(above) > MAX_DEPTH:
        reason = "links to a folder above" if place in above else f"below {MAX_DEPTH} folders"
        found.passed.add(reason, prefix)
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        name = prefix + entry.name
        if entry.name.startswith("."):
            continue
        try:
            status = entry.stat()
        except OSError:
            found.passed.add("dangling links", name)
            continue
        if stat.S_ISDIR(status.st_mode):
            found.folders.append(name)
            if pathlib.PurePath(name).suffix.lower() in SUFFIXES:
                found.passed.add("folders named like pictures", name)
            _walk(found, folder / entry.name, f"{name}/", (*above, place))
        elif stat.S_ISREG(status.st_mode):
            add(found, name, status.st_size)
        else:
            found.passed.add("pipes or devices", name)


def add(found: Listing, name: str, size: int) -> None:
    """Adds a file, if it is a picture, a table or a text."""
    suffix, base = pathlib.PurePosixPath(name).suffix.lower(), name.rpartition("/")[2]
    if base in TABLES or COCO.fullmatch(base):
        found.tables.append(name)
    elif suffix == ".txt":
        found.texts.append(name)
    elif suffix not in SUFFIXES:
        found.passed.add(f"{suffix} files" if suffix else "files without a suffix", name)
    elif size > MAX_BYTES:
        found.passed.add(f"of more than {MAX_BYTES:,} bytes", name)
    else:
        found.files[name] = size


def _zipped(root: pathlib.Path) -> Listing:
    """Lists a zip, which is read without being unpacked; a single folder around all is dropped."""
    try:
        archive = zipfile.ZipFile(root)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{root} is no folder and cannot be read as a zip ({error}); expected either"
        ) from error
    entries = {info.filename: info for info in archive.infolist()}
    tops = {name.partition("/")[0] for name in entries if not name.startswith("__MACOSX/")}
    around = f"{tops.pop()}/" if len(tops) == 1 else ""
    if around in ("../", "/", "./") or around[:-1] in entries:
        around = ""
    found = Listing(root, {}, [], [], [], Passed(), lambda name: _opened(archive, around + name))
    folders: set[str] = set()
    for full, info in entries.items():
        name = full.removeprefix(around)
        parts = name.rstrip("/").split("/")
        if any(part.startswith(".") and part != ".." for part in parts) or parts[0] == "__MACOSX":
            continue
        if reason := _refused(info, parts):
            found.passed.add(reason, name)
            continue
        folders.update("/".join(parts[:i]) for i in range(1, len(parts)))
        if info.is_dir():
            folders.add(name.rstrip("/"))
        else:
            add(found, name, info.file_size)
    return found._replace(folders=[name for name in folders if name])


def _refused(info: zipfile.ZipInfo, parts: list[str]) -> str:
    """Returns why an entry of a zip is passed over, or ""."""
    if not info.is_dir() and "" in parts or ".." in parts:
        return "with names outside the zip"
    if stat.S_ISLNK(info.external_attr >> 16):
        return "links in the zip"
    if info.flag_bits & 1:
        return "encrypted files"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "compressed in another way than deflate"
    if info.file_size > max(2**20, MAX_RATIO * info.compress_size):
        return f"compressed more than {MAX_RATIO} times"
    return ""


@contextlib.contextmanager
def _opened(archive: zipfile.ZipFile, name: str) -> Iterator[io.BytesIO]:
    """Opens an entry of a zip, whose size was checked; threads may do so at the same time."""
    try:
        yield io.BytesIO(archive.read(name))
    # Damage raises BadZipFile, zlib.error, EOFError, NotImplementedError, ...
    except (ValueError, OSError):
        raise
    except Exception as error:
        raise ValueError(f"{name} in {archive.filename} cannot be read ({error})") from error
