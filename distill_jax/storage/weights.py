"""Leaves of files on disk, and how they become sharded arrays: one after the other, a part each."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.typing import Tree

BFLOAT16 = np.dtype(jnp.bfloat16)
FLOATS = (np.dtype("float32"), BFLOAT16, np.dtype("float16"))  # What parameters may be.


@dataclasses.dataclass(frozen=True)
class Stored:
    """One leaf of a file, in our layout. JAX takes it for a leaf, which a tuple would not be.

    Attributes:
      shape: of all of it.
      dtype: of its elements.
      read: slices, one for each axis -> that part, which may be a view of the file: not to be
        written to. Fewer slices leave the last axes whole; () is all of it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[tuple[slice, ...]], np.ndarray]

    @property
    def size(self) -> int:
        """Its number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array in memory."""
        return self.size * self.dtype.itemsize

    def changed(self, change: Callable[[np.ndarray], np.ndarray]) -> "Stored":
        """The leaf after a change that transposes, reshapes or cuts: a view costs no memory."""
        like = change(np.broadcast_to(np.zeros((), self.dtype), self.shape))
        return Stored(like.shape, self.dtype, lambda index: change(self.read(()))[index])

    def checked(self, name: str) -> "Stored":
        """The same leaf, whose parts are looked at when they are read.

        `read` then raises LeafError where a number is not finite.
        """

        def read(index: tuple[slice, ...]) -> np.ndarray:
            part = self.read(index)
            if not np.isfinite(part).all():
                raise LeafError(f"{name} has values that are not finite; the checkpoint is damaged")
            return part

        return dataclasses.replace(self, read=read)


class LeafError(ValueError):
    """A leaf that cannot be used, found while it is read."""


def of_array(array: np.ndarray) -> Stored:
    """The leaf that an array holds, such as a view of a memory map.

    Its type stays, but for float64, which is read as float32.
    """
    dtype = np.dtype("float32") if array.dtype == np.float64 else array.dtype
    return Stored(array.shape, dtype, lambda index: array[index].astype(dtype, copy=False))


def mapped(path: epath.PathLike) -> np.ndarray:
    """The bytes of a file: a memory map, which takes none of its own; of a bucket, read whole."""
    path = epath.Path(path)
    if "://" in str(path) or not path.stat().length:
        return np.frombuffer(path.read_bytes(), np.uint8)
    return np.memmap(path, mode="r").view(np.ndarray)


def place(tree: Tree, shardings: Tree, dtype: Any = None) -> Tree:
    """Leaves on their devices, one leaf after the other: the host holds one shard beside the file.

    Args:
      tree: of Stored.
      shardings: of its arrays, as of Layout.shardings.
      dtype: to convert each part to; None keeps that of each leaf.
    """

    def placed(leaf: Stored, sharding: jax.sharding.Sharding) -> jax.Array:
        kept = leaf.dtype if dtype is None else np.dtype(dtype)

        def part(index: tuple[slice, ...]) -> np.ndarray:
            return np.array(leaf.read(index), kept, order="C")  # JAX may keep what it is given.

        array = jax.make_array_from_callback(leaf.shape, sharding, part, dtype=kept)
        return jax.block_until_ready(array)

    return jax.tree.map(placed, tree, shardings)
