"""Trees of arrays: names and sizes of their leaves, and dataclasses that are pytrees."""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, dataclass_transform

import jax

Class = TypeVar("Class")
STACK = re.compile(r"\[(\d+):(\d+)\]")  # Suffix of the names of modules with stacked layers.
MAX_PARTS = 9  # A module with more parts than a layer is listed by its parts.


def name_of(path: tuple) -> str:
    """Returns the name of a leaf, such as "block_0/query/kernel", from its path in a tree."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_stacked(name: str) -> bool:
    """Returns whether a leaf has a leading axis of layers: 12 for block[0:12]/qkv/kernel."""
    return STACK.search(name) is not None


def is_vector(name: str, leaf: Any) -> bool:
    """Returns whether a leaf has at most one axis, beside the axis of layers of a stack."""
    return leaf.ndim - is_stacked(name) <= 1


def layers_of(name: str, joint: str = "_") -> list[str]:
    """Returns the names of single layers: block_0/qkv to block_11/qkv for block[0:12]/qkv."""
    found = STACK.search(name)
    if found is None:
        return [name]
    layers = range(*map(int, found.groups()))
    return [STACK.sub(f"{joint}{layer}", name, count=1) for layer in layers]


def stack_layers(tree: Any, like: Any, stack: Callable[[list, Any], Any]) -> Any:
    """Returns the leaves of a tree of single layers in the structure of `like`, which has stacks.

    Args:
      tree: nested dicts, whose names are those of layers_of.
      like: nested dicts of the same leaves, some of which are stacked.
      stack: maps the leaves of the layers and the leaf of `like` to one leaf.
    """
    found = by_name(tree)

    def pick(path: tuple, leaf: Any) -> Any:
        layers = [found[layer] for layer in layers_of(name_of(path))]
        return stack(layers, leaf) if is_stacked(name_of(path)) else layers[0]

    return jax.tree_util.tree_map_with_path(pick, like)


def by_name(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by name."""
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def flat(tree: Any, path: str = "config") -> dict[str, Any]:
    """Returns the values of a config as plain data, by dotted key."""
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {k: v for key, value in tree.items() for k, v in flat(value, f"{path}.{key}").items()}


def insert(tree: dict[str, Any], name: str, leaf: Any) -> None:
    """Puts a leaf into nested dicts at its name, such as "block_0/query/kernel"."""
    *parents, last = name.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[last] = leaf


def by_module(params: Mapping[str, Any], most: int = 14) -> dict[str, int]:
    """Returns the number of parameters of each level of a network, the largest first.

    down_0.block_1 and down_0_block_1 count towards down_0, and a module of more than MAX_PARTS
    parts is split into its parts. Levels of equal size whose names differ only by a number are one
    entry. If there are more than `most` entries, the smallest are merged.
    """
    levels: dict[str, int] = {}

    def add(params: Mapping[str, Any]) -> None:
        for name, part in params.items():
            if isinstance(part, Mapping) and len(part) > MAX_PARTS:
                add(part)
                continue
            level = re.match(r"[a-z]+_[0-9]+(?=[._])|[^.]+", name)[0]  # type: ignore[index]  # All match.
            size = sum(leaf.size for leaf in jax.tree.leaves(part))
            levels[level] = levels.get(level, 0) + size

    add(params)
    alike: dict[tuple[str, int], list[str]] = {}
    for name, size in levels.items():
        alike.setdefault((re.sub(r"\d+$", "", name), size), []).append(name)
    merged = {span(names): size * len(names) for (_, size), names in alike.items()}
    ordered = sorted(merged.items(), key=lambda item: -item[1])
    if len(ordered) > most:
        ordered, rest = ordered[: most - 1], ordered[most - 1 :]
        ordered.append((f"{len(rest)} others", sum(size for _, size in rest)))
    return dict(ordered)


def span(names: Sequence[str]) -> str:
    """Returns a name, or for several names a range: s02_n0016 to s06_n0001 (5)."""
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]} ({len(names)})"


@dataclass_transform(frozen_default=True)
def traced(*names: str) -> Callable[[type[Class]], type[Class]]:
    """Returns a decorator for frozen dataclasses that are pytrees with these fields as leaves.

    The fields hold numbers or tracers, so their type is Any.
    """

    def register(cls: Any) -> Any:
        cls = dataclasses.dataclass(frozen=True)(cls)
        constant = [field.name for field in dataclasses.fields(cls) if field.name not in names]
        return jax.tree_util.register_dataclass(cls, list(names), constant)

    return register
