"""The entries of a checkpoint that holds more than one network, and the choice of one of them."""

from collections.abc import Mapping
from typing import Any

from distill_jax.runtime.text import plain

WRAPPERS = ("module.", "_orig_mod.")  # Prefixes of DistributedDataParallel and torch.compile.
MAX_LISTED = 12


class EntryError(ValueError):
    """An error for a whole file of which another entry, or another format, must be named."""


def chosen(tree: Mapping[Any, Any], key: str) -> Any:
    """Returns the entry of a name, or the entries whose names begin with the name and a dot.

    Raises:
      EntryError: if there are none, with those that there are.
    """
    if key in tree:
        return tree[key]
    begin = f"{key}."
    found = {
        name[len(begin) :]: value
        for name, value in tree.items()
        if isinstance(name, str) and name.startswith(begin)
    }
    if not found:
        raise EntryError(f"--key={key} is not in the file, which has {listed(prefixes(tree))}")
    return found


def unwrapped(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays without a prefix of WRAPPERS that all names have."""
    for begin in WRAPPERS:
        if state and all(name.startswith(begin) for name in state):
            return unwrapped({name[len(begin) :]: value for name, value in state.items()})
    return dict(state)


def prefixes(tree: Mapping[Any, Any]) -> dict[str, str]:
    """Returns the first part of the names, up to a dot, with the number of names."""
    counts: dict[str, int] = {}
    for name in tree:
        first = str(name).partition(".")[0] if isinstance(name, (str, int)) else "?"
        counts[first] = counts.get(first, 0) + 1
    return {name: f"{count} names" for name, count in counts.items()}


def listed(entries: Mapping[str, str]) -> str:
    """Returns "NAME (what it is), ...", at most MAX_LISTED of them."""
    names = list(entries)[:MAX_LISTED]
    more = f" and {len(entries) - len(names)} more" if len(entries) > len(names) else ""
    texts = (f"{plain(name)} ({entries[name]})" for name in names)
    return (", ".join(texts) or "no entries") + more
