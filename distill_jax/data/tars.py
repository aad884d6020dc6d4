"""The members of tars, found by their headers and read by their places in the file.

WebDataset's shards are tars without compression. The reader here is small because a tar may come
from anybody: it follows no link, allocates no more than MAX_HEADER for a header, and takes the
header of a member only with its checksum.
"""

import pathlib
import re
from collections.abc import Iterator
from typing import IO, NamedTuple

BLOCK = 512
MAX_HEADER = 2**20  # Bytes of a long name, or of the records of pax.
FILES = (b"0", b"\0", b"7")
HEADERS = (b"x", b"g", b"L", b"K")  # Kinds that describe the next member, or all.
EMPTY = (b"1", b"2", b"3", b"4", b"5", b"6")  # Kinds without content, whatever size they name.
# Kinds of members that are no files, and why they are passed over.
KINDS = {b"1": "links in a tar", b"2": "links in a tar", b"S": "sparse files in a tar"}
KINDS |= dict.fromkeys((b"3", b"4", b"6"), "pipes or devices in a tar")
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    """A member of a tar.

    Attributes:
      name: its name, as it is in the tar.
      start: place of its first byte in the tar.
      size: number of its bytes.
      reason: why it is passed over; "" for a file.
    """

    name: str
    start: int
    size: int
    reason: str


def members(path: pathlib.Path) -> Iterator[Member]:
    """Yields the members of a tar other than folders, by its headers only.

    Raises:
      ValueError: for a file that is no tar, is compressed, is damaged, or ends before its last
        member does; it has the path. The members before the damage have been yielded.
    """
    total, place = path.stat().st_size, 0
    extra: dict[str, str] = {}
    with path.open("rb") as file:
        while block := _header(path, file, place, total):
            kind, size = block[156:157], _size(path, place, block, extra)
            start = _after_sparse(file, block, place + BLOCK)
            place = start + -(-size // BLOCK) * BLOCK
            if place > total:
                raise ValueError(
                    f"{path} is cut: a member ends at byte {place:,}, and the file at {total:,}"
                )
            if kind in (b"x", b"L"):
                file.seek(start)
                extra |= _records(path, start, kind, _bounded(path, file, start, size))
            elif kind not in HEADERS:
                if kind != b"5":
                    yield Member(_name(block, extra), start, size, _reason(kind, extra))
                extra = {}


def _header(path: pathlib.Path, file: IO[bytes], place: int, total: int) -> bytes:
    """Returns the header at a place, with its checksum checked; b"" at the end of the tar."""
    if place and place >= total:  # Tars may lack the blocks of zeros at their end.
        return b""
    file.seek(place)
    block = file.read(BLOCK)
    if block and not any(block):
        return b""
    known = _octal(block[148:156])
    if len(block) == BLOCK and known == sum(block[:148]) + 8 * 32 + sum(block[156:]):
        return block
    compression = next((name for key, name in COMPRESSED.items() if block.startswith(key)), "")
    if not place and compression:
        raise ValueError(
            f"{path} is compressed by {compression}, so that its members cannot be read in any "
            "order: unpack it to a plain .tar"
        )
    found = "is no tar" if not place else f"is damaged at byte {place:,}"
    raise ValueError(f"{path} {found}: there is no header of a member")


def _octal(field: bytes) -> int | None:
    """Returns the number of a field, octal or in the base 256 of GNU; None if it has none."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:], "big")
    text = field.strip(b" \0") or b"0"
    return int(text, 8) if text.isdigit() and not set(text) & set(b"89") else None


def _size(path: pathlib.Path, place: int, block: bytes, extra: dict[str, str]) -> int:
    """Returns the number of bytes that follow a header."""
    kind, size = block[156:157], _octal(block[124:136])
    if "size" in extra and kind not in HEADERS:
        text = extra["size"]
        size = int(text) if re.fullmatch(r"[0-9]{1,19}", text) else None
    if size is None:
        raise ValueError(f"{path} is damaged at byte {place:,}: a member has no size")
    return 0 if kind in EMPTY else size


def _after_sparse(file: IO[bytes], block: bytes, start: int) -> int:
    """Returns where the content begins: a sparse file of GNU may have more headers before it."""
    goes_on = block[482:483] if block[156:157] == b"S" else b""
    while goes_on and goes_on != b"\0":
        file.seek(start)
        goes_on = file.read(BLOCK)[504:505]
        start += BLOCK
    return start


def _bounded(path: pathlib.Path, file: IO[bytes], start: int, size: int) -> bytes:
    """Returns the content of a header for the next member."""
    if size > MAX_HEADER:
        raise ValueError(
            f"{path} has a header of {size:,} bytes at byte {start:,}; expected at most "
            f"{MAX_HEADER:,}"
        )
    return file.read(size)


def _records(path: pathlib.Path, start: int, kind: bytes, content: bytes) -> dict[str, str]:
    """Returns "path", "size" and "sparse" of the next member, by GNU's long name or pax records."""
    if kind == b"L":
        return {"path": _text(content)}
    found, place = {}, 0
    while place < len(content):
        length, _, _ = content[place : place + 8].partition(b" ")
        end = place + int(length) if length.isdigit() else place
        key, equals, value = content[place + len(length) + 1 : end - 1].partition(b"=")
        if not equals or end > len(content) or content[end - 1 : end] != b"\n":
            raise ValueError(f"{path} is damaged at byte {start:,}: a header has no pax records")
        if key in (b"path", b"size"):
            found[_text(key)] = _text(value)
        elif key.startswith(b"GNU.sparse."):
            found["sparse"] = ""
        place = end
    return found


def _name(block: bytes, extra: dict[str, str]) -> str:
    """Returns the name of a member: of pax, or of GNU, or of its header."""
    if "path" in extra:
        return extra["path"]
    name, prefix = _text(block[:100]), _text(block[345:500])
    return f"{prefix}/{name}" if prefix and block[257:263] == b"ustar\0" else name


def _reason(kind: bytes, extra: dict[str, str]) -> str:
    if "sparse" in extra:
        return KINDS[b"S"]
    return "" if kind in FILES else KINDS.get(kind, "members of other kinds in a tar")


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")
