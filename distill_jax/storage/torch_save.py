"""The files of torch.save: from their bytes to records, with storages that are views of the bytes.

torch 1.6 and later write a zip archive, older versions a sequence of pickles.
"""

import zipfile
import zlib
from typing import Any, BinaryIO

import numpy as np

from distill_jax.runtime.text import short
from distill_jax.storage.unpickle import (
    STORAGES,
    Budget,
    ForbiddenError,
    Reader,
    Record,
    Unpickler,
    plain_key,
)

LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
MAX_LISTING = 2**24  # Bytes of an archive's list of entries, each of which becomes a large object.


def open_zip(file: BinaryIO, content: np.ndarray, budget: Budget) -> Any:
    """Returns the object in a zip archive of torch.save; its storages are views of the bytes.

    PREFIX/data.pkl is the pickle, PREFIX/data/KEY the bytes of a storage, PREFIX/byteorder "little"
    or "big" (absent before torch 2.1, which means little).
    """
    end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # Private; nothing else reads the last record alone.
    if end[zipfile._ECD_SIZE] > MAX_LISTING:  # type: ignore[attr-defined]
        raise ForbiddenError("its archive has more entries than any network")
    archive = zipfile.ZipFile(file)
    entries = {entry.filename: entry for entry in archive.infolist()}
    # PyTorch stores without compression, so an archive cannot hold more than its own size.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
        raise ForbiddenError("its archive is compressed, which PyTorch never does")
    if sum(entry.file_size for entry in archive.infolist()) > len(content):
        raise ForbiddenError("its archive claims to hold more than its own size")
    if len(entries) != len(archive.infolist()):
        raise ForbiddenError("its archive has two entries of one name")
    (pickled,) = (name for name in entries if name.rpartition("/")[2] == "data.pkl")
    prefix = pickled.removesuffix("data.pkl")
    order = entries.get(f"{prefix}byteorder")
    big = order is not None and _member(order, content).tobytes() == b"big"
    reader = Unpickler(Reader(_member(entries[pickled], content)), budget)
    found = reader.load()
    for key, storage in reader.storages.items():
        member = _member(entries[f"{prefix}data/{key}"], content)
        storage.state = _numbers(storage, member, big)
    return found


def _member(entry: zipfile.ZipInfo, content: np.ndarray) -> np.ndarray:
    """Returns a view of the bytes of an uncompressed archive member, after checking its checksum.

    Before them is a header of 30 bytes, which ends with the lengths of a name and of extra fields.
    """
    if entry.flag_bits & 1:
        raise ForbiddenError("its archive is encrypted")
    begin = entry.header_offset + 30
    name, extra = content[begin - 4 : begin].view("<u2").tolist()
    data = content[begin + name + extra :][: entry.file_size]
    if zlib.crc32(data.data) != entry.CRC:
        raise ValueError(f"the checksum of {short(entry.filename)} is wrong")
    return data


def open_legacy(content: bytes | np.ndarray, budget: Budget) -> Any:
    """Returns the object in a file of torch.save before 1.6; its storages are views of the bytes.

    The file has five pickles: a magic number, a version, facts about the machine, the object, and
    the keys of its storages. For each key follow the number of elements in 8 bytes, and those.
    """
    file = Reader(content)
    if Unpickler(file, budget).load() != LEGACY_MAGIC:
        raise ValueError("it is a pickle, and not of torch.save; EDM's pickles have the format edm")
    if Unpickler(file, budget).load() != LEGACY_VERSION:
        raise ValueError("it does not begin as files of torch.save do")
    big = not Unpickler(file, budget).load()["little_endian"]
    reader = Unpickler(file, budget)
    found = reader.load()
    for key in Unpickler(file, budget).load():
        storage = reader.storages[plain_key(key)]
        origin, size = storage.args
        if int.from_bytes(file.read(8), "big" if big else "little") != size:
            raise ValueError(f"storage {short(key)} has another size than the {size} it should")
        storage.state = _numbers(storage, file.view(size * _itemsize(origin)), big)
    return found


def _itemsize(origin: str) -> int:
    return np.dtype(STORAGES[origin]).itemsize


def _numbers(storage: Record, data: memoryview | np.ndarray, big: bool) -> np.ndarray:
    """Returns the elements of a storage, a view of `data` unless the byte order is foreign."""
    origin, size = storage.args
    width = _itemsize(origin)
    if len(data) != size * width:
        raise ValueError(f"a storage of {size} elements has {len(data)} bytes")
    words = np.frombuffer(data, f"{'>' if big else '<'}u{width}")
    return words.astype(words.dtype.newbyteorder("="), copy=False).view(STORAGES[origin])
