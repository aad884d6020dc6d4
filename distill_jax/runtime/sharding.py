"""Sharding of arrays: one mesh, one rule for batches, and a list of rules for parameters."""

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from distill_jax.runtime.trees import is_stacked, name_of
from distill_jax.typing import Tree

AXES = ("data", "fsdp", "tensor")
# Attention heads and hidden units are split over tensor as in Megatron-LM (Shoeybi et al. 2019,
# arXiv:1909.08053, section 3): the first layer of a pair by its output, the second by its input, so
# that the pair needs one all-reduce. The other large axis is split over fsdp.
RULES = (
    (r"(^|/)qkv/kernel$", ("fsdp", None, "tensor")),  # (width, 3, heads, head_dim)
    (r"(^|/)qkv/bias$", (None, "tensor")),
    (r"(^|/)[qkv]/kernel$", ("fsdp", "tensor")),  # (width, heads, head_dim)
    (r"(^|/)[qkv]/bias$", ("tensor",)),
    (r"(^|/)single_[^/]*/proj_out/kernel$", ("tensor", "fsdp")),  # (width and hidden, width)
    (r"(^|/)proj(_out)?/kernel$", ("tensor", None, "fsdp")),  # (heads, head_dim, width)
    (r"(^|/)up(_\d+)?/kernel$", ("fsdp", "tensor")),  # (width, hidden)
    (r"(^|/)up(_\d+)?/bias$", ("tensor",)),
    (r"(^|/)down(_\d+)?/kernel$", ("tensor", "fsdp")),  # (hidden, width)
    # Of transformers with the names of diffusers.
    (r"\.(to_[qkv]|add_[qkv]_proj)/kernel$", ("fsdp", "tensor")),  # (width, heads head_dim)
    (r"\.(to_[qkv]|add_[qkv]_proj)/bias$", ("tensor",)),
    (r"\.to_(out\.0|add_out)/kernel$", ("tensor", "fsdp")),  # (heads head_dim, width)
    (r"[./]ff(_context)?\.net\.0\.proj/kernel$", ("fsdp", "tensor")),  # (width, hidden or 2 hidden)
    (r"[./]ff(_context)?\.net\.0\.proj/bias$", ("tensor",)),
    (r"/proj_mlp/kernel$", ("fsdp", "tensor")),  # (width, hidden)
    (r"/proj_mlp/bias$", ("tensor",)),
    (r"[./]ff(_context)?\.net\.2/kernel$", ("tensor", "fsdp")),  # (hidden, width)
)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The mesh, and the rules that decide the sharding of every array of a run.

    Attributes:
      mesh: mesh with axes data, fsdp, tensor. Batches are split over data and fsdp.
      rules: pairs (regex on the parameter's path, mesh axis or None for each array axis); the first
        match counts. A mesh axis is left out if it has one device, or does not divide the array's
        axis; so is fsdp in arrays of fewer than `min_size` elements. An array that no rule splits
        over fsdp is split over it along the largest free axis that fsdp divides.
      min_size: smallest number of elements of an array that is split over fsdp.
    """

    mesh: Mesh | AbstractMesh
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = RULES
    min_size: int = 2**12

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of scalars, keys and small arrays."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """The sharding of a batch along its first axis."""
        return NamedSharding(self.mesh, PartitionSpec(("data", "fsdp")))

    @property
    def ways(self) -> int:
        """Number of devices that a batch is split over."""
        return self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    @property
    def part(self) -> tuple[int, int]:
        """The pair (i, n): this process has shard i of the n equal shards of every batch.

        Processes that differ only in the tensor axis have the same shard.
        """
        if jax.process_count() == 1:
            return 0, 1
        rows: dict[int, set[int]] = {}
        places: Any = self.batch.devices_indices_map((self.ways,))
        for device, (index,) in places.items():
            rows.setdefault(device.process_index, set()).add(index.start or 0)
        parts = sorted({tuple(sorted(part)) for part in rows.values()})
        return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)

    def shardings(self, tree: Tree) -> Tree:
        """Returns the sharding of every leaf, for parameters and for optimizer states like them."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: NamedSharding(self.mesh, self._spec(path, leaf.shape)), tree
        )

    def abstract(self, tree: Tree) -> Tree:
        """Returns the tree as jax.ShapeDtypeStruct with shardings, to restore arrays into."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree,
            self.shardings(tree),
        )

    def constrain(self, tree: Tree) -> Tree:
        """Constrains each leaf to its sharding; for use under jit."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def gather(self, tree: Tree, dtype: Any = None) -> Tree:
        """All-gathers parameters over fsdp for use under jit; reduce-scatters their gradients.

        Without it, the partitioner also moves activations between devices, whose cost grows with
        the batch.

        Args:
          tree: parameters with their `shardings`.
          dtype: type to cast to before the all-gather; None keeps each type. Gradients are summed
            in the type of the parameters.
        """
        if self.mesh.shape["fsdp"] == 1:
            return tree
        stored = tuple(leaf.dtype for leaf in jax.tree.leaves(tree))
        return _gathered(self, dtype, stored, tree)

    def without_fsdp(self, tree: Tree) -> Tree:
        """Returns `shardings` with the axis fsdp left out."""

        def without(sharding: NamedSharding) -> NamedSharding:
            axes = (None if axis == "fsdp" else axis for axis in sharding.spec)
            return NamedSharding(self.mesh, _spec_of(axes))

        return jax.tree.map(without, self.shardings(tree))

    def replicated_bytes(self, tree: Tree) -> dict[str, int]:
        """Returns the bytes of the fully replicated leaves by name, the largest first."""
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        shardings = jax.tree.leaves(self.shardings(tree))
        sizes = {
            name_of(path): math.prod(leaf.shape) * leaf.dtype.itemsize
            for (path, leaf), sharding in zip(leaves, shardings, strict=True)
            if sharding.is_fully_replicated
        }
        return dict(sorted(sizes.items(), key=lambda item: -item[1]))

    def shard_batch(self, arrays: Tree) -> Tree:
        """Returns the global batch, sharded over the mesh, from this process's shard of it."""
        return jax.tree.map(
            lambda part: jax.make_array_from_process_local_data(self.batch, part), arrays
        )

    def unshard_batch(self, array: jax.Array) -> np.ndarray:
        """Returns this process's shard of a global batch: the inverse of `shard_batch`."""
        parts = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
        return np.concatenate([np.asarray(parts[start]) for start in sorted(parts)])

    def replicate(self, arrays: Tree) -> Tree:
        """Returns arrays that every process has, replicated on every device."""
        return jax.tree.map(
            lambda whole: jax.make_array_from_process_local_data(self.replicated, whole), arrays
        )

    def pad_and_shard(self, tree: Tree) -> Tree:
        """Shards the tree like a batch, after padding; for use under jit.

        The last row is repeated until the number of devices divides the length; see `unpad`.
        """

        def split(leaf: jax.Array) -> jax.Array:
            if missing := -len(leaf) % self.ways:
                leaf = jnp.pad(leaf, [(0, missing)] + [(0, 0)] * (leaf.ndim - 1), mode="edge")
            return jax.lax.with_sharding_constraint(leaf, self.batch)

        return jax.tree.map(split, tree)

    def unpad(self, x: jax.Array, num: int) -> jax.Array:
        """Returns the first `num` rows of a result for a padded batch, without its padding."""
        return x if len(x) == num else jax.lax.with_sharding_constraint(x[:num], self.replicated)

    def check_batch(self, size: int) -> None:
        """Raises ValueError unless the devices of the data and fsdp axes divide the batch."""
        ways = self.ways
        if size < 1:
            raise ValueError(f"batch_size is {size}; expected at least {ways}")
        if size % ways:
            raise ValueError(
                f"batch_size {size} is not divisible by data x fsdp = {ways} devices; choose a "
                f"multiple of {ways}, such as {max(1, round(size / ways)) * ways}"
            )

    def _spec(self, path: tuple, shape: tuple[int, ...]) -> PartitionSpec:
        """Returns the axes of an array, from the first rule that matches its name.

        Stacked layers are split like a single layer, and their leading axis is not split.
        """
        name = name_of(path)
        if is_stacked(name):
            return _spec_of((None, *self._axes(name, shape[1:])))
        return self._axes(name, shape)

    def _axes(self, name: str, shape: tuple[int, ...]) -> PartitionSpec:
        """Returns the axes of an array of one layer."""
        ruled = next((axes for pattern, axes in self.rules if re.search(pattern, name)), ())
        if len(ruled) > len(shape):
            ruled = ()
        axes = [*ruled, *(None,) * (len(shape) - len(ruled))]
        sizes, large = self.mesh.shape, math.prod(shape) >= self.min_size
        for i, axis in enumerate(axes):
            splits = axis and sizes[axis] > 1 and shape[i] % sizes[axis] == 0
            if not splits or (axis == "fsdp" and not large):
                axes[i] = None
        free = [i for i, axis in enumerate(axes) if not axis and shape[i] % sizes["fsdp"] == 0]
        if large and free and "fsdp" not in axes:
            axes[max(free, key=lambda i: shape[i])] = "fsdp"
        return _spec_of(axis if axis and sizes[axis] > 1 else None for axis in axes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _gathered(layout: Layout, dtype: Any, stored: tuple, tree: Tree) -> Tree:
    """Gathers the tree over fsdp; its gradient has the shardings of the layout."""
    cast = layout.constrain(jax.tree.map(lambda leaf: leaf.astype(dtype or leaf.dtype), tree))
    return jax.lax.with_sharding_constraint(cast, layout.without_fsdp(tree))


def _gathered_forward(layout: Layout, dtype: Any, stored: tuple, tree: Tree) -> tuple[Tree, None]:
    """Returns the gathered tree, and no residuals for the backward pass."""
    return _gathered(layout, dtype, stored, tree), None


def _gathered_backward(
    layout: Layout, dtype: Any, stored: tuple, _: None, gradient: Tree
) -> tuple[Tree]:
    """Reduce-scatters the gradient in the types of the parameters."""
    leaves, structure = jax.tree.flatten(gradient)
    leaves = [leaf.astype(kept) for leaf, kept in zip(leaves, stored, strict=True)]
    return (layout.constrain(jax.tree.unflatten(structure, leaves)),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def _spec_of(axes: Iterable[str | None]) -> PartitionSpec:
    """Returns a PartitionSpec without None at its end, so that equal shardings compare equal."""
    axes = list(axes)
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def make_layout(sizes: Mapping[str, int], devices: list[jax.Device] | int | None = None) -> Layout:
    """Returns a layout with the axis sizes of the config; -1 takes the remaining devices.

    Args:
      sizes: sizes of the axes; missing axes have size 1.
      devices: devices of the mesh; None for all devices here. Another number of devices gives a
        layout that is only for plans.

    Raises:
      ValueError: unless the product of the sizes is the number of devices.
    """
    if devices is None or devices == jax.device_count():
        devices = jax.devices()
    count = devices if isinstance(devices, int) else len(devices)
    shape = [sizes.get(axis, 1) for axis in AXES]
    fixed = math.prod(size for size in shape if size != -1)
    if shape.count(-1) == 1 and fixed > 0 and count % fixed == 0:
        shape[shape.index(-1)] = count // fixed
    if math.prod(shape) != count or min(shape) < 1:
        raise ValueError(
            f"mesh {dict(sizes)} does not fit {count} devices: data x fsdp x tensor must be "
            f"{count}, and one axis may be -1 for the rest"
        )
    types = (AxisType.Auto,) * len(AXES)
    if isinstance(devices, int):
        return Layout(AbstractMesh(tuple(shape), AXES, axis_types=types))
    mesh = jax.make_mesh(shape, AXES, axis_types=types, devices=devices)
    return Layout(mesh)
