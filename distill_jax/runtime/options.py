"""Rules for the values of options: fields of a dataclass declare them, one function checks."""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np


class Rule(NamedTuple):
    """A condition on the value of an option.

    Attributes:
      holds: function that returns whether a value satisfies the condition.
      expected: the condition in words, such as "a number from 0 to 1".
    """

    holds: Callable[[Any], bool]
    expected: str


def number(low: float | int, high: float | int = math.inf) -> Rule:
    """Returns the rule for a number from `low` to `high`, both included."""
    text = f"a number from {low:g}" + ("" if high == math.inf else f" to {high:g}")
    return Rule(lambda value: low <= value <= high, text)


def whole(low: int, step: int = 1) -> Rule:
    """Returns the rule for a whole number from `low` that is divisible by `step`."""

    def holds(value: Any) -> bool:
        return isinstance(value, (int, np.integer)) and bool(value >= low and value % step == 0)

    return Rule(holds, f"a {'whole number' if step == 1 else f'multiple of {step}'} from {low}")


def choice(known: Iterable[str]) -> Rule:
    """Returns the rule for one of the known names."""
    return Rule(lambda value: value in known, f"one of {', '.join(known)}")


def optional(rule: Rule) -> Rule:
    """Returns the rule that also allows None."""
    return Rule(lambda value: value is None or rule.holds(value), f"None or {rule.expected}")


def option(rule: Rule, default: Any = dataclasses.MISSING) -> Any:
    """Returns a field of a dataclass whose values must satisfy the rule."""
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
