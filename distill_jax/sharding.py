"""Where arrays live: one mesh, one rule for batches, a list of rules for parameters."""

import dataclasses
import math
import re
from collections.abc import Mapping

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from distill_jax.typing import Tree

AXES = ("data", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class Layout:
    """The mesh and the rules that place every array of a run on it.

    Attributes:
      mesh: axes data, fsdp, tensor. Batches are split over data and fsdp.
      rules: (regex on the parameter's path, its axes) pairs, the first match decides; an axis is
        a mesh axis or None. Without a match the largest axis that fsdp divides is split, in
        arrays of at least `min_size` elements.
      min_size: arrays below it are replicated.
    """

    mesh: Mesh | AbstractMesh
    rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()
    min_size: int = 2**12

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of scalars, keys and small arrays."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """The sharding of a batch along its first axis."""
        return NamedSharding(self.mesh, PartitionSpec(("data", "fsdp")))

    def shardings(self, tree: Tree) -> Tree:
        """A NamedSharding for every leaf: parameters, and optimizer states that mirror them."""
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: NamedSharding(self.mesh, self._spec(path, leaf.shape)), tree
        )

    def abstract(self, tree: Tree) -> Tree:
        """The same tree of jax.ShapeDtypeStruct, each with its sharding; for restoring into."""
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            tree,
            self.shardings(tree),
        )

    def constrain(self, tree: Tree) -> Tree:
        """The same tree, each leaf held to its sharding; for use under jit."""
        return jax.lax.with_sharding_constraint(tree, self.shardings(tree))

    def place(self, arrays: Tree) -> Tree:
        """A global batch from this process's part of it, split over the mesh."""
        return jax.tree.map(
            lambda part: jax.make_array_from_process_local_data(self.batch, part), arrays
        )

    def check_batch(self, size: int) -> None:
        """Raises ValueError unless the devices of the data and fsdp axes divide the batch."""
        ways = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
        if size < 1:
            raise ValueError(f"batch_size is {size}; expected at least {ways}")
        if size % ways:
            raise ValueError(
                f"batch_size {size} is not divisible by data x fsdp = {ways} devices; choose a "
                f"multiple of {ways}, such as {max(1, round(size / ways)) * ways}"
            )

    def _spec(self, path: tuple, shape: tuple[int, ...]) -> PartitionSpec:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, axes in self.rules:
            if re.search(pattern, name):
                return PartitionSpec(*axes)
        ways = self.mesh.shape["fsdp"]
        divisible = [axis for axis, length in enumerate(shape) if length % ways == 0]
        if ways == 1 or math.prod(shape) < self.min_size or not divisible:
            return PartitionSpec()
        largest = max(divisible, key=lambda axis: shape[axis])
        return PartitionSpec(*(None,) * largest, "fsdp")


def make_layout(sizes: Mapping[str, int], devices: list[jax.Device] | int | None = None) -> Layout:
    """A layout with the axis sizes of the config; -1 takes the rest.

    Args:
      sizes: of the axes; those without one have size 1.
      devices: to lay out; None is all that are here, and a number that is not theirs a layout
        that can be planned with and not run on.

    Raises:
      ValueError: when the sizes do not multiply to the number of devices.
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
