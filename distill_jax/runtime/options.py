"""Options and their rules: declared where a dataclass has its fields, checked by one function."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np


class Rule(NamedTuple):
    """A condition on the value of an option.

    Attributes:
      holds: whether a value does.
      expected: the same in words, such as "a number from 0 to 1".
    """

    holds: Callable[[Any], bool]
    expected: str


def number(low: float | int, high: float | int = math.inf) -> Rule:
    """A number from `low` to `high`, both included."""
    text = f"a number from {low:g}" + ("" if high == math.inf else f" to {high:g}")
    return Rule(lambda value: low <= value <= high, text)


def whole(low: int, step: int = 1) -> Rule:
    """A whole number from `low`, which `step` divides."""

    def holds(value: Any) -> bool:
        return isinstance(value, (int, np.integer)) and bool(value >= low and value % step == 0)

    return Rule(holds, f"a {'whole number' if step == 1 else f'multiple of {step}'} from {low}")


def choice(known: Iterable[str]) -> Rule:
    """One of the known names."""
    return Rule(lambda value: value in known, f"one of {', '.join(known)}")


def optional(rule: Rule) -> Rule:
    """None, or what the rule says."""
    return Rule(lambda value: value is None or rule.holds(value), f"None or {rule.expected}")


def option(rule: Rule, default: Any = dataclasses.MISSING) -> Any:
    """A field of a dataclass whose values must satisfy the rule."""
    return dataclasses.field(default=default, metadata={"rule": rule})


def check(name: str, value: Any, rule: Rule) -> None:
    """Raises ValueError unless the value satisfies the rule."""
    if not rule.holds(value):
        raise ValueError(f"{name} is {value!r}; expected {rule.expected}")


def check_options(options: Any) -> None:
    """Raises ValueError for the first field of a dataclass that breaks its rule."""
    for field in dataclasses.fields(options):
        if "rule" in field.metadata:
            check(field.name, getattr(options, field.name), field.metadata["rule"])
