"""Trees of arrays: the names of their leaves."""

from typing import Any

import jax


def name_of(path: tuple) -> str:
    """The name of a leaf, such as "block_0/query/kernel", from its path in a tree."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def by_name(tree: Any) -> dict[str, Any]:
    """The leaves of a tree by name."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
