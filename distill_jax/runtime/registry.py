"""The registry: it looks up a name from a config, a flag or a file, and builds the object.

A name with a colon, `package.module:Name`, is code outside the package, and is imported. That is
allowed for names that the user writes, in a config or on a command line, but not for names in a
file from elsewhere. Every caller therefore passes the names with a colon that it allows.
"""

import abc
import difflib
import importlib
import inspect
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from distill_jax.runtime.options import check_arguments, shown


class _Everything:
    def __contains__(self, name: object) -> bool:
        return True


EVERYTHING = _Everything()  # For names that the user wrote.


def suggestion(name: str, known: Iterable[str]) -> str:
    """Returns the end of a message, "; did you mean X?", or "" when no known name is similar."""
    near = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def foreign(names: Iterable[Any]) -> tuple[str, ...]:
    """Returns the names of code outside the package, those with a colon, without duplicates."""
    return tuple(dict.fromkeys(name for name in names if isinstance(name, str) and ":" in name))


def check_allowed(names: Iterable[Any], allow: Container[str]) -> None:
    """Raises ValueError, which lists the names, unless every name with a colon is allowed."""
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
    """Returns table[name], or imports the object of a name with a colon.

    Args:
      table: the objects of the package by name.
      kind: noun for the entries of the table, for messages.
      name: name of an entry, or package.module:Name.
      allow: names with a colon that may be imported; EVERYTHING if the user wrote the name.
      makes: class that the object makes. If it is abstract, a name with a colon must be a subclass
        of it, otherwise anything callable.

    Raises:
      KeyError: for an unknown name, with the known ones.
      ValueError: for a name with a colon that is not allowed, does not exist, or has another type.
    """
    if foreign([name]):
        check_allowed([name], allow)
        return _imported(kind, name, makes)
    if name not in table:
        raise KeyError(
            f"unknown {kind} {shown(name)}; known: {', '.join(sorted(table))}"
            f"{suggestion(name, table)}"
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
    """Looks up spec["name"], and calls the object with `args` and the other entries of `spec`.

    Raises:
      KeyError: for an unknown name, or for an unknown or missing option, with a suggestion.
      ValueError: as `lookup`, for an option that breaks its rule (see runtime.options), and if the
        result is not an instance of `makes`.
    """
    name = spec.get("name")
    if not isinstance(name, str):
        raise KeyError(
            f"the name of the {kind} is {shown(name)}; expected one of {', '.join(sorted(table))}, "
            f"as 'name' beside its options{suggestion(str(name), table)}"
        )
    options = {key: value for key, value in spec.items() if key != "name"}
    builder = lookup(table, kind, name, allow, makes)
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
    check_arguments(builder, options)
    built = builder(*args, **options)
    if not isinstance(built, makes):
        raise ValueError(
            f"{kind} {spec['name']!r} made a {type(built).__name__}; expected a {makes.__name__}"
        )
    return built
