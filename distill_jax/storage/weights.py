"""Leaves of files on disk, and their placement on devices, one leaf and one shard at a time."""

import dataclasses
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from distill_jax.typing import Tree

BFLOAT16 = np.dtype(jnp.bfloat16)
FLOATS = (np.dtype("float32"), BFLOAT16, np.dtype("float16"))  # Supported dtypes of parameters.


@dataclasses.dataclass(frozen=True)
class Stored:
    """An unread array in a file, in our layout.

    It is a dataclass and not a tuple, so that JAX treats it as a leaf.

    Attributes:
      shape: shape of the whole array.
      dtype: dtype of its elements.
      read: maps slices, one per axis, to that part of the array, which may be a read-only view of
        the file. Fewer slices leave the last axes whole; () reads the whole array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[tuple[slice, ...]], np.ndarray]

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The number of bytes of the whole array in memory."""
        return self.size * self.dtype.itemsize

    def changed(self, change: Callable[[np.ndarray], np.ndarray]) -> "Stored":
        """Returns the leaf with a function applied that transposes, reshapes or slices it."""
        like = change(np.broadcast_to(np.zeros((), self.dtype), self.shape))
        return Stored(like.shape, self.dtype, lambda index: change(self.read(()))[index])

    def checked(self, name: str) -> "Stored":
        """Returns the leaf with a `read` that raises LeafError for values that are not finite."""

        def read(index: tuple[slice, ...]) -> np.ndarray:
            part = self.read(index)
            # By rows, because the result for a whole leaf would be half as large as it.
            if not all(np.isfinite(row).all() for row in np.atleast_1d(part)):
                raise LeafError(f"{name} has values that are not finite; the checkpoint is damaged")
            return part

        return dataclasses.replace(self, read=read)


class LeafError(ValueError):
    """An error for a leaf whose values cannot be used, raised while it is read."""


def of_array(array: np.ndarray) -> Stored:
    """Returns an array, such as a view of a memory map, as a Stored; float64 becomes float32."""
    dtype = np.dtype("float32") if array.dtype == np.float64 else array.dtype
    return Stored(array.shape, dtype, lambda index: array[index].astype(dtype, copy=False))


def stacked(layers: list[Stored], _: Any = None) -> Stored:
    """Returns equal leaves of single layers as one leaf, for trees.stack_layers.

    Layers of several dtypes become float32. Beside the result one layer at a time is in memory.
    """
    dtypes = {layer.dtype for layer in layers}
    dtype = dtypes.pop() if len(dtypes) == 1 else np.dtype(np.float32)

    def read(index: tuple[slice, ...]) -> np.ndarray:
        first, *rest = layers[index[0]] if index else layers
        one = first.read(index[1:])
        found = np.empty((1 + len(rest), *one.shape), dtype)
        found[0] = one
        for number, layer in enumerate(rest):
            found[number + 1] = layer.read(index[1:])
        return found

    return Stored((len(layers), *layers[0].shape), dtype, read)


def unstacked(stack: Stored) -> list[Stored]:
    """Returns the single layers of a leaf, the inverse of `stacked`."""

    def layer(number: int) -> Stored:
        own = slice(number, number + 1)
        return Stored(stack.shape[1:], stack.dtype, lambda index: stack.read((own, *index))[0])

    return [layer(number) for number in range(stack.shape[0])]


def mapped(path: epath.PathLike) -> np.ndarray:
    """Returns the bytes of a file as a memory map; a file in a bucket is read into memory.

    Raises:
      ValueError: for a folder, pipe or device, which may have no end.
    """
    path = epath.Path(path)
    if "://" not in str(path) and os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{path} is no regular file; expected a checkpoint")
    if "://" in str(path) or not path.stat().length:
        return np.frombuffer(path.read_bytes(), np.uint8)
    return np.memmap(path, mode="r").view(np.ndarray)


def place(tree: Tree, shardings: Tree, dtype: Any = None) -> Tree:
    """Places stored leaves on their devices, one by one, with one shard at a time in host memory.

    Args:
      tree: tree of Stored.
      shardings: tree of shardings, as from Layout.shardings.
      dtype: dtype to convert each shard to; None keeps that of each leaf.
    """

    def placed(leaf: Stored, sharding: jax.sharding.Sharding) -> jax.Array:
        kept = leaf.dtype if dtype is None else np.dtype(dtype)

        def part(index: Any) -> np.ndarray:
            return np.array(leaf.read(index), kept, order="C")  # A copy, because JAX may keep it.

        array = jax.make_array_from_callback(leaf.shape, sharding, part, dtype=kept)
        return jax.block_until_ready(array)

    return jax.tree.map(placed, tree, shardings)
