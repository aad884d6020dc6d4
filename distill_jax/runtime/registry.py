"""Names to objects: the one place where a name from a config, a flag or a file is looked up."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def suggestion(name: str, known: Iterable[str]) -> str:
    """A question to end a message with, did you mean X, or "" when nothing known is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def lookup(table: Mapping[str, Any], kind: str, name: str) -> Any:
    """table[name].

    Raises:
      KeyError: for an unknown name, listing the known ones.
    """
    if name not in table:
        raise KeyError(
            f"unknown {kind} {name!r}; known: {', '.join(sorted(table))}{suggestion(name, table)}"
        )
    return table[name]


def build(table: Mapping[str, Callable], kind: str, spec: Mapping[str, Any], *args: Any) -> Any:
    """table[spec["name"]](*args, **the other entries of spec).

    Raises:
      KeyError: for an unknown name, or an entry that the object does not take, with a suggestion.
    """
    options = {key: value for key, value in spec.items() if key != "name"}
    builder = lookup(table, kind, spec["name"])
    parameters = inspect.signature(builder).parameters
    known = list(parameters)[len(args) :]
    for key in options:
        if key not in known:
            raise KeyError(
                f"{kind} {spec['name']!r} does not take {key!r}; it takes: "
                f"{', '.join(known) or 'nothing'}{suggestion(key, known)}"
            )
    for key in known:
        if key not in options and parameters[key].default is inspect.Parameter.empty:
            raise KeyError(f"{kind} {spec['name']!r} needs a value for {key!r}")
    return builder(*args, **options)
