"""Names to objects: the one place where a name from a config, a flag or a file is looked up.

A name with a colon, `package.module:Name`, is no entry of a table but code of somebody's own, and
is imported. That is right for what the user writes, a config or a command line, and never for a
file that comes from elsewhere: whoever looks a name up says which such names are allowed.
"""

import abc
import difflib
import importlib
import inspect
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any


class _Everything:
    def __contains__(self, name: object) -> bool:
        return True


EVERYTHING = _Everything()  # What is allowed in the words of the user.


def suggestion(name: str, known: Iterable[str]) -> str:
    """A question to end a message with, did you mean X, or "" when nothing known is near."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def foreign(names: Iterable[Any]) -> tuple[str, ...]:
    """The names that stand for code outside the tables, each once."""
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str) and ":" in name))


def check_allowed(names: Iterable[Any], allow: Container[str]) -> None:
    """Raises ValueError unless every name with a colon is allowed, with all that are not."""
    if missing := tuple(name for name in foreign(names) if name not in allow):
        raise ValueError(
            f"{', '.join(missing)} is code outside distill_jax, and nothing is imported at the "
            f"word of a file; if you trust it, allow it: load(DIR, allow={missing!r}), "
            f"{' '.join(f'--allow={name}' for name in missing)} on the command line, or "
            f"config.allow = {missing!r} in a run"
        )


def lookup(
    table: Mapping[str, Any], kind: str, name: str, allow: Container[str] = (), makes: type = object
) -> Any:
    """table[name], or what a name with a colon stands for.

    Args:
      table: of what is in the package.
      kind: what the table has, for messages.
      name: an entry, or package.module:Name.
      allow: names with a colon that may be imported; EVERYTHING where the user wrote the name.
      makes: a name with a colon stands for a subclass, where this is an abstract class, else for
        anything that can be called.

    Raises:
      KeyError: for an unknown name, listing the known ones.
      ValueError: for a name with a colon that is not allowed, is not there, or is something else.
    """
    if foreign([name]):
        check_allowed([name], allow)
        return _imported(kind, name, makes)
    if name not in table:
        raise KeyError(
            f"unknown {kind} {name!r}; known: {', '.join(sorted(table))}{suggestion(name, table)}"
        )
    return table[name]


def _imported(kind: str, name: str, makes: type) -> Any:
    path, _, attribute = name.partition(":")
    if not all(part.isidentifier() for part in (*path.split("."), attribute)):
        raise ValueError(f"{kind} {name!r} is no name; expected package.module:Name")
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not f"{path}.".startswith(f"{error.name}."):
            raise  # The module is there, and something that it imports is not.
        raise ValueError(
            f"{kind} {name!r}: there is no module {error.name!r}; start the command in the folder "
            "that holds it, name that folder in PYTHONPATH, or install the package"
        ) from error
    if not hasattr(module, attribute):
        known = [key for key in vars(module) if not key.startswith("_")]
        raise ValueError(
            f"{kind} {name!r}: {path} has no {attribute!r}{suggestion(attribute, known)}"
        )
    found = getattr(module, attribute)
    if issubclass(makes, abc.ABC):
        fits, expected = inspect.isclass(found) and issubclass(found, makes), f"a {makes.__name__}"
    else:
        fits, expected = callable(found), "a function or class"
    if not fits:
        raise ValueError(f"{kind} {name!r} is {found!r:.100}; expected {expected}")
    return found


def build(
    table: Mapping[str, Callable],
    kind: str,
    spec: Mapping[str, Any],
    *args: Any,
    allow: Container[str] = (),
    makes: type = object,
) -> Any:
    """table[spec["name"]](*args, **the other entries of spec), names looked up as by `lookup`.

    Raises:
      KeyError: for an unknown name, or an entry that the object does not take, with a suggestion.
      ValueError: as `lookup`, and where what is built is no instance of `makes`.
    """
    options = {key: value for key, value in spec.items() if key != "name"}
    builder = lookup(table, kind, spec["name"], allow, makes)
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
    built = builder(*args, **options)
    if not isinstance(built, makes):
        raise ValueError(
            f"{kind} {spec['name']!r} made a {type(built).__name__}; expected a {makes.__name__}"
        )
    return built
