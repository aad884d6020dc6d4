"""Rules for the values of options: annotations and fields declare them, one function checks them.

An option is a field of a dataclass, or an argument of a function. Its type is a rule: `bool`,
`int`, `float`, `str`, tuples of these, and unions. `option(rule, default)` as the default of a
field, or `Annotated[type, rule]` as the annotation, adds a rule, such as a range.
"""

import contextlib
import dataclasses
import functools
import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np

Function = TypeVar("Function", bound=Callable)
LARGEST = 2**31 - 1  # Of a whole number without an upper bound of its own, as of an int32.
MAX_WIDTH = 2**16  # Of layers, embeddings and sides of images.
MAX_BLOCKS = 128  # Of a network that traces every block; a scan over blocks takes more.
MAX_STEPS = 100_000  # Of a sampler or a table of noise levels.
MAX_W = 1000.0  # Of guidance strengths.
MAX_NUM = 1_000_000  # Of images that a command draws and keeps in memory.
MAX_SEED = 2**32 - 1  # A key of JAX has 32 bits of a seed.
# Errors of a rule about a value of another type than it compares with.
MISFITS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class OptionError(ValueError):
    """The error of one option; `within` puts the path of its dict in front of its key.

    Attributes:
      key: the key, such as width.
      reason: the rest of the message.
    """

    def __init__(self, key: str, reason: str):
        super().__init__(f"{key} {reason}")
        self.key, self.reason = key, reason


@contextlib.contextmanager
def within(path: str) -> Iterator[None]:
    """Puts a path, such as config.model, in front of the key of an OptionError in the block."""
    try:
        yield
    except OptionError as error:
        raise OptionError(f"{path}.{error.key}", error.reason) from error


class Rule(NamedTuple):
    """A condition on the value of an option.

    Attributes:
      holds: function that returns whether a value satisfies the condition. It may raise an error of
        MISFITS for a value of another type, which does not satisfy it.
      expected: the condition in words, such as "a number from 0 to 1".
    """

    holds: Callable[[Any], bool]
    expected: str

    def allows(self, value: Any) -> bool:
        """Returns whether a value of any type satisfies the condition."""
        try:
            return bool(self.holds(value))
        except MISFITS:
            return False


def is_whole(value: Any) -> bool:
    """Returns whether a value is a whole number; True and False are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Returns whether a value is a number that float32 holds: finite, and no smaller than 1e-30.

    True and False are no numbers.
    """
    real = is_whole(value) or isinstance(value, (float, np.floating))
    return real and (value == 0 or 1e-30 <= abs(float(value)) <= 1e30)


def is_sequence(value: Any) -> bool:
    """Returns whether a value is a tuple or a list."""
    return isinstance(value, (tuple, list))


def number(
    low: float | int, high: float | int = math.inf, without: Collection[float | int] = ()
) -> Rule:
    """Returns the rule for a number from `low` to `high` whose float32 is not in `without`."""
    text = f"a number {'above' if low in without else 'from'} {low:g}"
    if high < math.inf:
        text += f" to below {high:g}" if high in without else f" to {high:g}"
    # 1 - 1e-9 is 1 in float32, where it would be used.
    return Rule(lambda v: is_number(v) and low <= v <= high and np.float32(v) not in without, text)


def whole(low: int, step: int = 1, high: int = LARGEST) -> Rule:
    """Returns the rule for a whole number from `low` to `high` that is divisible by `step`."""
    text = f"a {'whole number' if step == 1 else f'multiple of {step}'} from {low}"
    if high < LARGEST:
        text += f" to {high:,}"
    return Rule(lambda v: is_whole(v) and low <= v <= high and v % step == 0, text)


def choice(known: Iterable[str]) -> Rule:
    """Returns the rule for one of the known names."""
    return Rule(lambda v: isinstance(v, str) and v in known, f"one of {', '.join(known)}")


def optional(rule: Rule) -> Rule:
    """Returns the rule that also allows None."""
    return Rule(lambda value: value is None or rule.holds(value), f"None or {rule.expected}")


def every(rule: Rule, most: int = 100, least: int = 0) -> Rule:
    """Returns the rule for a tuple of `least` to `most` values that satisfy `rule`."""
    count = f"{least} to {most}" if least else f"at most {most}"
    text = f"a tuple of {most if least == most else count} values, each {rule.expected}"
    return Rule(
        lambda v: is_sequence(v) and least <= len(v) <= most and all(map(rule.holds, v)), text
    )


ANYTHING = Rule(lambda value: True, "anything")
NOTHING = Rule(lambda value: value is None, "None")
MAX_LENGTH = 10_000  # Of a string or a tuple.
TYPES: dict[Any, Rule] = {
    bool: Rule(lambda v: isinstance(v, (bool, np.bool_)), "True or False"),
    int: Rule(lambda v: is_whole(v) and abs(v) < 2**63, "a whole number"),
    float: Rule(is_number, "a number"),
    str: Rule(lambda v: isinstance(v, str) and len(v) <= MAX_LENGTH, "a string"),
    dict: Rule(lambda v: hasattr(v, "keys"), "a dict"),  # Also a ConfigDict.
    tuple: Rule(lambda v: is_sequence(v) and len(v) <= MAX_LENGTH, "a tuple"),
    list: Rule(lambda v: is_sequence(v) and len(v) <= MAX_LENGTH, "a list"),
    None: NOTHING,
    type(None): NOTHING,
}


def typed(annotation: Any) -> Rule:
    """Returns the rule for the values of an annotation; a type that is not known has none."""
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        rules = (typed(parts[0]), *(part for part in parts[1:] if isinstance(part, Rule)))
        return functools.reduce(both, rules)
    if origin in (typing.Union, types.UnionType):
        rules = tuple(map(typed, parts))
        known = " or ".join(rule.expected for rule in rules)
        return Rule(lambda value: any(rule.allows(value) for rule in rules), known)
    if origin is typing.Literal:
        return choice(parts)
    if origin is tuple and parts:
        return _tuple_of(*parts)
    return TYPES.get(origin or annotation, ANYTHING)


def _tuple_of(*parts: Any) -> Rule:
    """Returns the rule for tuples: of any length with parts (T, ...), else one value per part."""
    if parts[-1] is Ellipsis:
        return every(typed(parts[0]), MAX_LENGTH)._replace(
            expected=f"a tuple, each {typed(parts[0]).expected}"
        )
    rules = tuple(map(typed, parts))
    text = f"a tuple of {len(rules)}: {', '.join(rule.expected for rule in rules)}"
    return Rule(
        lambda v: is_sequence(v) and all(r.holds(part) for r, part in zip(rules, v, strict=True)),
        text,
    )


def both(first: Rule, second: Rule) -> Rule:
    """Returns the rule that both rules hold, in the words of the second."""
    return Rule(lambda value: first.holds(value) and second.holds(value), second.expected)


def option(rule: Rule, default: Any = dataclasses.MISSING) -> Any:
    """Returns a field of a dataclass whose values must satisfy the rule."""
    return dataclasses.field(default=default, metadata={"rule": rule})


def takes_fields(kind: type) -> Callable[[Function], Function]:
    """Returns a decorator for functions whose keyword arguments are the fields of a dataclass."""

    def register(function: Function) -> Function:
        vars(function).update(__signature__=inspect.signature(kind), fields_of=kind)
        return function

    return register


@functools.cache
def rules_of(builder: Any) -> dict[str, Rule]:
    """Returns the rule of every option of a dataclass or function, by name."""
    kind = getattr(builder, "fields_of", builder)
    try:
        parameters = inspect.signature(kind, eval_str=True).parameters
    except (NameError, AttributeError, SyntaxError, TypeError):  # Names that only a checker knows.
        parameters = inspect.signature(kind).parameters
    rules = {name: typed(parameter.annotation) for name, parameter in parameters.items()}
    for field in dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ():
        if "rule" in field.metadata and field.name in rules:
            rules[field.name] = both(rules[field.name], field.metadata["rule"])
    return rules


def shown(value: Any, most: int = 100) -> str:
    """Returns the repr of a value in one line of at most `most` characters."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # A whole number of thousands of digits, a deep nest.
        text = f"a {type(value).__name__} too long to print"
    return text if len(text) <= most else f"{text[: most - 3]}..."


def check(name: str, value: Any, rule: Rule) -> None:
    """Raises OptionError unless the value satisfies the rule."""
    if not rule.allows(value):
        raise OptionError(name, f"is {shown(value)}; expected {rule.expected}")


def check_arguments(builder: Any, arguments: Mapping[str, Any]) -> None:
    """Raises OptionError for the first argument of a dataclass or function that breaks its rule."""
    rules = rules_of(builder)
    for name, value in arguments.items():
        check(name, value, rules.get(name, ANYTHING))


def check_options(options: Any) -> None:
    """Raises OptionError for the first field of a dataclass that breaks its rule."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    check_arguments(type(options), values)
