"""Arrays in shards of array_record: records of one dtype, written once and read in any order."""

import dataclasses
import math
import os
from collections.abc import Iterable, Sequence

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from distill_jax.runtime.files import written
from distill_jax.runtime.text import reason
from distill_jax.storage.writing import guarded

SHARD, MAX_SHARDS = 1024, 1024  # Fewest records of a shard but the last, and most shards.
MEMORY = 2**31  # Bytes of records that are kept in memory; more are read when they are drawn.


@dataclasses.dataclass(frozen=True)
class Shards:
    """Shards of `count` records in a local folder; a shard has its name when it is complete.

    Attributes:
      folder: the folder.
      count: number of records.
      dtype: structured dtype of a record.
    """

    folder: epath.Path
    count: int
    dtype: np.dtype

    @property
    def size(self) -> int:
        """Records of a shard; the last one may have fewer."""
        return max(SHARD, math.ceil(self.count / MAX_SHARDS))

    @property
    def files(self) -> list[epath.Path]:
        """The paths of all shards, in their order."""
        number = math.ceil(self.count / self.size)
        return [self.folder / f"{i:05d}.array_record" for i in range(number)]

    @property
    def nbytes(self) -> int:
        """Bytes of all records, without what the format adds, about 80 for each."""
        return self.count * self.dtype.itemsize

    def missing(self) -> list[int]:
        """Returns the numbers of the shards that are not there."""
        return [i for i, path in enumerate(self.files) if not path.exists()]

    def rows(self, shard: int) -> range:
        """Returns the numbers of the records in a shard."""
        return range(shard * self.size, min((shard + 1) * self.size, self.count))

    def write(self, shard: int, parts: Iterable[np.ndarray]) -> None:
        """Writes a shard, part by part; an interruption leaves none of it.

        Raises:
          OSError: if the disk is full or fails.
        """
        with guarded(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        left = len(self.rows(shard))
        with written(self.files[shard]) as partial:
            with guarded(self.folder):
                writer = ArrayRecordWriter(os.fspath(partial), "group_size:1,uncompressed")
            for part in parts:
                with guarded(self.folder):
                    for record in part[:left]:
                        writer.write(record.tobytes())
                left -= len(part[:left])
            with guarded(self.folder):
                writer.close()
        assert not left

    def read(self) -> "Records":
        """Opens the shards, which must be complete; see Records."""
        return Records(self)


class Records:
    """The records of all shards, which several threads may read at once.

    Raises:
      ValueError: for shards that are missing, damaged or of other records.
    """

    def __init__(self, shards: Shards):
        self._shards, self._files = shards, shards.files
        self._readers = [self._open(i) for i in range(len(self._files))]
        self._kept = None
        if shards.nbytes <= MEMORY:
            parts = [self._all(i) for i in range(len(self._files))]
            self._kept = np.concatenate([np.empty(0, shards.dtype), *parts])

    def __len__(self) -> int:
        return self._shards.count

    def __getitem__(self, index: int) -> np.void:
        """Returns one record."""
        record: np.void = self.take([index])[0]
        return record

    def take(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns records (n,) in the order of `indices`."""
        if self._kept is not None:
            return self._kept[np.asarray(indices)]
        dtype, size = self._shards.dtype, self._shards.size
        found = np.empty(len(indices), dtype)
        for i, index in enumerate(indices):
            shard, place = divmod(int(index), size)
            try:
                (content,) = self._readers[shard].read([place])
                found[i] = np.frombuffer(content, dtype)[0]
            except (IndexError, RuntimeError, ValueError) as error:
                raise self._damaged(shard, reason(error)) from error
        return found

    def _all(self, shard: int) -> np.ndarray:
        """Returns the records of a shard."""
        try:
            content = b"".join(self._readers[shard].read_all())
            return np.frombuffer(content, self._shards.dtype)
        except (RuntimeError, ValueError) as error:
            raise self._damaged(shard, reason(error)) from error

    def _open(self, shard: int) -> ArrayRecordReader:
        path = self._files[shard]
        if not os.path.isfile(path):
            raise self._damaged(shard, "it is missing")
        try:
            reader = ArrayRecordReader(
                os.fspath(path), options="readahead_buffer_size:0", file_reader_buffer_size=2**15
            )
            found = reader.num_records() if reader.ok() else 0
        except RuntimeError as error:
            raise self._damaged(shard, reason(error)) from error
        if found != (expected := len(self._shards.rows(shard))):
            raise self._damaged(shard, f"it has {found:,} records of {expected:,}")
        return reader

    def _damaged(self, shard: int, cause: str) -> ValueError:
        return ValueError(
            f"{self._files[shard]} cannot be read ({cause}); remove it, and run the command that "
            "made the cache again, which writes this shard anew"
        )
