"""The types and ranges of the fields of a manifest, which may come from anywhere."""

import math
import re
from collections.abc import Mapping
from typing import Any

from distill_jax.runtime.app import CONTROL
from distill_jax.runtime.options import (
    MAX_W,
    MAX_WIDTH,
    NOTHING,
    Rule,
    choice,
    every,
    is_number,
    is_sequence,
    number,
    optional,
    shown,
    whole,
)

MAX_NUMBER = 10**6  # Of numbers that describe a network, such as its width.
MAX_ENTRIES = 1000  # Of a list.
MAX_NAME = 200  # Characters.
MAX_VALUES = 2**26  # In an image or in another array of an example.


def is_text(value: Any) -> bool:
    """Returns whether a value is text without control characters, which a terminal may obey."""
    return isinstance(value, str) and not CONTROL.search(value)


def is_name(value: Any) -> bool:
    """Returns whether a value is one line of text that can be printed in a table."""
    return is_text(value) and 0 < len(value) <= MAX_NAME and not re.search(r"[\n\t]", value)


def is_option(value: Any) -> bool:
    """Returns whether a value is made of short lists, names, finite numbers, True, False, None."""
    if isinstance(value, Mapping):
        return is_option([*value, *value.values()])
    if is_sequence(value):
        return len(value) <= MAX_ENTRIES and all(map(is_option, value))
    if is_number(value):
        return abs(value) <= MAX_NUMBER
    return value in (None, "") or isinstance(value, bool) or is_name(value)


def _is_shape(value: Any) -> bool:
    sides = every(whole(1, high=MAX_VALUES), 10)
    return sides.allows(value) and math.prod(value) <= MAX_VALUES


def _is_condition(name: str, leaf: Any) -> bool:
    classes, dtype = leaf["classes"], leaf["dtype"]
    if classes is not None and not (_is_shape([classes]) and dtype == "int32"):
        return False
    return is_name(name) and _is_shape(leaf["shape"]) and dtype in ("float32", "int32", "bool")


def _is_range(value: Any) -> bool:
    low, high = value
    return is_number(low) and is_number(high) and 0 <= low <= high <= MAX_W


W_RANGE = Rule(_is_range, "[low, high] with 0 <= low <= high")
NAME = Rule(is_name, f"a name of 1 to {MAX_NAME} printable characters")
TEXT = Rule(is_text, "text without control characters")
TRUTH = Rule(lambda value: isinstance(value, bool), "true or false")
FINGERPRINT = whole(0, high=2**32 - 1)
RECORD = Rule(lambda value: isinstance(value, dict), "an object")
OPTIONS = {
    "name": NAME,
    "*": Rule(is_option, f"names, lists and finite numbers of at most {MAX_NUMBER:,}"),
}
REFERENCE = {"path": TEXT, "fingerprint": FINGERPRINT}
# The fields of a manifest by name, nested like its objects. A field that may be None may be absent.
RULES: dict[str, Any] = {
    "stage": NAME,
    "trained": {
        "sampler": OPTIONS,
        "guidance": {
            "w_range": optional(W_RANGE),
            "fixed_w": number(-MAX_W, MAX_W),
            "null": TRUTH,
        },
        "all_times": TRUTH,
        "saturated": TRUTH,
        "resolutions": every(whole(1, high=MAX_WIDTH)),
    },
    "distilled": TRUTH,
    "spec": {
        "x": {
            "shape": Rule(
                lambda value: _is_shape(value) and len(value) == 3,
                f"[height, width, channels] of at most {MAX_VALUES:,} values",
            ),
            "dtype": choice(("float32",)),
            "classes": NOTHING,
        },
        "bounded": TRUTH,
        "cond": Rule(
            lambda value: len(value) <= 20 and all(_is_condition(*item) for item in value.items()),
            "shapes, dtypes and classes of conditions",
        ),
    },
    "model": OPTIONS,
    "schedule": OPTIONS,
    "parameterization": NAME,
    "data": optional(RECORD),
    "lineage": {
        "method": Rule(lambda value: is_name(value["name"]), 'an object with a "name"'),
        **dict.fromkeys(("parent", "init", "init_fake"), optional(TEXT)),
        "updates": optional(whole(0)),
        **dict.fromkeys(("source", "versions", "config"), optional(RECORD)),
    },
    "matmul_precision": optional(
        choice(("default", "high", "highest", "bfloat16", "tensorfloat32", "float32"))
    ),
    "metrics": optional(RECORD),
    "fake": optional(FINGERPRINT),
    **dict.fromkeys(("fingerprint", "arrays"), optional(FINGERPRINT)),
    "adapters": optional(RECORD),
    "codec": optional(RECORD),
    "best": optional(RECORD),
    "posthoc": optional(RECORD),
    "conditioner": optional(RECORD),
}
RULES_OF_ADAPTERS = {
    "base": REFERENCE,
    "rank": whole(1, high=MAX_WIDTH),
    "full": every(NAME, MAX_ENTRIES),
}


def check_fields(
    content: Mapping[str, Any], rules: Mapping[str, Any], place: str, path: str = ""
) -> None:
    """Raises ValueError, with the name of the field, unless the content follows the rules.

    Args:
      content: object of a JSON file.
      rules: Rule of every field, or the rules of its fields; "*" is for all other fields.
      place: name of the file, for the message.
      path: path of the object in the file, with a dot at its end.
    """
    others = [key for key in content if key not in rules] if "*" in rules else []
    for key in (*rules, *others):
        rule, value = rules.get(key, rules.get("*")), content.get(key)
        name = f"{path}{key:.{MAX_NAME}}"
        if isinstance(rule, Mapping):
            if not isinstance(value, dict):
                raise _misfit(place, name, value, RECORD.expected)
            check_fields(value, rule, place, f"{name}.")
        elif key != "*" and not rule.allows(value):
            raise _misfit(place, name, value, rule.expected)


def _misfit(place: str, name: str, value: Any, expected: str) -> ValueError:
    return ValueError(f"{place}: {name} is {shown(value)}; expected {expected}")


def check_text(content: Any, place: str) -> None:
    """Raises ValueError if any text in the content of a JSON file has control characters."""
    if isinstance(content, dict):
        content = [*content, *content.values()]
    if isinstance(content, list):
        for part in content:
            check_text(part, place)
    elif isinstance(content, str) and not is_text(content):
        raise ValueError(
            f"{place} has the text {ascii(content):.200}; expected no control characters"
        )
