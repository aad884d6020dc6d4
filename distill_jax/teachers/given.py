"""Values that a checkpoint does not contain and the user gives, and limits of those it contains."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from distill_jax.runtime.options import Rule, number
from distill_jax.runtime.registry import suggestion
from distill_jax.runtime.text import short

KEY = "key"  # The name under which readers get the value of --key.
MAX_BLOCKS = 64  # Residual blocks on the way down; the largest published network has 14.
MAX_SIDE, MAX_CHANNELS, MAX_WIDTH, MAX_CLASSES = 4096, 64, 16_384, 1_000_000


def one_value(value: Any) -> Rule:
    """Returns the rule for the only value that is supported, of the same type."""
    return Rule(lambda found: type(found) is type(value) and found == value, f"only {value!r}")


YES_NO = Rule(lambda value: type(value) is bool, "true or false")
DROPOUT = number(0, 1)


def check_value(name: str, value: Any, rule: Rule) -> None:
    """Raises ValueError unless a value of a file or a flag satisfies its rule."""
    if not rule.allows(value):
        raise ValueError(f"{name} is {short(value)}; expected {rule.expected}")


def check_given(given: Mapping[str, Any], rules: Mapping[str, Rule]) -> None:
    """Raises ValueError for a given value that no rule is for, or that breaks its rule."""
    for name, value in given.items():
        if name not in rules:
            raise ValueError(
                f"this format takes no --set {name}; it takes: {', '.join(rules) or 'none'}"
                f"{suggestion(name, rules)}"
            )
        check_value(f"--set {name}", value, rules[name])


def parse(texts: Iterable[str]) -> dict[str, Any]:
    """Returns the values of flags KEY=VALUE: numbers, true, false, lists in JSON, or else text.

    Raises:
      ValueError: for a flag without "=", and for a key that occurs twice.
    """
    given: dict[str, Any] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not separator or not name.isidentifier() or name == KEY or name in given:
            raise ValueError(f"--set={text} is no KEY=VALUE, or its key occurs twice")
        try:
            given[name] = json.loads(value.lower() if value in ("True", "False") else value)
        except ValueError:
            given[name] = value
    return given


def split_key(given: Mapping[str, Any] | None) -> tuple[str | None, dict[str, Any]]:
    """Returns the value of --key, or None, and the other given values."""
    rest = dict(given or {})
    return rest.pop(KEY, None), rest
