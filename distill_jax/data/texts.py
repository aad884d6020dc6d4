"""Texts of files that anybody may have written: captions and prompts."""

import json
from collections.abc import Mapping
from typing import Any

from distill_jax.data.listing import Listing

KEYS = ("text", "caption", "prompt")  # The first that an object has is read.
Texts = tuple[str, ...]


def decoded(content: bytes, place: str) -> str:
    """Returns the text of a file in UTF-8; line ends of any kind become newlines.

    A byte order mark is dropped.

    Raises:
      ValueError: for other bytes, and for NUL, which most files in UTF-16 have.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place} is no text in UTF-8 ({error}); save it as UTF-8") from error
    if "\0" in text:
        raise ValueError(f"{place} has NUL in its text; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def text_of(found: Listing, name: str, limit: int) -> str:
    """Returns the text of a file of a listing, see decoded; at most `limit` bytes."""
    return decoded(found.read(name, limit), str(found.root / name))


def parsed(text: str, place: str) -> dict[str, Any]:
    """Returns the JSON object in a text.

    Raises:
      ValueError: if there is none.
    """
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is no JSON object ({str(error):.200})") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{place} is no JSON object; got {text:.80}")
    return entry


def texts_in(entry: Mapping[str, Any], place: str) -> Texts | None:
    """Returns the texts of an object, which has one or a list under one of KEYS.

    Empty texts are left out. None if the object has none of KEYS.

    Raises:
      ValueError: for a value that is no text.
    """
    key = next((key for key in KEYS if key in entry), None)
    if key is None:
        return None
    value = entry[key]
    texts = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{place} has no text or list of texts in {key!r}: {value!r:.80}")
    # Half of a surrogate pair, which JSON may name, has no UTF-8.
    whole = (text.encode("utf-8", "replace").decode() for text in texts)
    return tuple(text.strip() for text in whole if text.strip())


def lines_of(text: str) -> list[str]:
    """Returns the lines of a text that are not empty, without space around them."""
    return [line.strip() for line in text.split("\n") if line.strip()]
