"""Trees of arrays: the names of their leaves, and dataclasses that are trees."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax


def name_of(path: tuple) -> str:
    """The name of a leaf, such as "block_0/query/kernel", from its path in a tree."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def traced(*names: str) -> Callable[[type], type]:
    """Makes a class a frozen dataclass and a pytree whose leaves are the fields named here.

    Those fields hold numbers or tracers, so their type is Any.
    """

    def register(cls: type) -> type:
        cls = dataclasses.dataclass(frozen=True)(cls)
        constant = [field.name for field in dataclasses.fields(cls) if field.name not in names]
        return jax.tree_util.register_dataclass(cls, list(names), constant)

    return register
