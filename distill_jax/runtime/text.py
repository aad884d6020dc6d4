"""Text for messages about values that may come from anybody: short, on one line, and printable."""

from typing import Any

MAX_LENGTH = 80  # Characters of a value in a message.
MAX_ITEMS = 8  # Items of a container in a message.


def short(value: Any, length: int = MAX_LENGTH) -> str:
    """Returns repr(value) in at most `length` characters, in time that its size does not change.

    Control characters are escaped. Of a container only the first items and one level are shown.
    """
    if isinstance(value, str):
        text = repr(value[:length])  # Up to ten times as long as the string.
        whole = len(value) <= length and len(text) <= 2 * length
        return text if whole else f"{text[: 2 * length]}..."
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length():,} bits"
    if isinstance(value, (list, tuple)) and len(value) <= MAX_ITEMS and all(map(_small, value)):
        parts = ", ".join(short(item, length // 4) for item in value)
        comma = "," if isinstance(value, tuple) and len(value) == 1 else ""
        return f"[{parts}]" if isinstance(value, list) else f"({parts}{comma})"
    if value is None or isinstance(value, (bool, int, float)):
        return repr(value)
    if isinstance(value, (list, tuple, dict, set, frozenset)):
        return f"a {type(value).__name__} of {len(value):,}"
    return f"a {type(value).__name__}"


def plain(name: Any, length: int = MAX_LENGTH) -> str:
    """Returns a name as `short`, without quotes."""
    return short(name, length).strip("'\"") if isinstance(name, str) else short(name, length)


def reason(error: Exception, length: int = 200) -> str:
    """Returns the type and the message of an exception, in at most `length` characters.

    The message is left out if it would print an object of unknown size.
    """
    kind = type(error).__name__
    if not all(isinstance(part, (str, int, float)) for part in error.args):
        return kind
    text = " ".join(f"{kind}: {error}"[: 4 * length].split())
    return printable(text[:length])


def printable(text: str) -> str:
    """Replaces line breaks and the characters that a terminal would obey by question marks."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _small(value: Any) -> bool:
    return value is None or isinstance(value, (str, bool, int, float))
