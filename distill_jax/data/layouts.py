"""The layouts of pictures in folders: which are examples, of which class, and of which split."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from distill_jax.data.images import MIN_IMAGES
from distill_jax.data.listing import COCO, MAX_TABLE, Listing, Passed

TRAIN = ("train", "training")
TEST = ("val", "valid", "validation", "test", "testing")  # The first that is there is used.
TEST_SHARE = 0.1
MIN_FILES = sum(MIN_IMAGES.values())
MAX_CLASSES = 100_000  # Limit of the labels in dataset.json; ImageNet-21k has 21,841 classes.
EXPECTED = (
    "expected folder/class/*.png, folder/*.png, either below folder/train and folder/val, or a "
    "dataset.json or metadata.jsonl beside the pictures"
)


class Layout(NamedTuple):
    """The examples of a folder.

    Attributes:
      train: names and labels of the training images, in the order of the names.
      test: those of the test split.
      classes: name of each class; one without classes.
      notes: how the examples were found, in words.
    """

    train: list[tuple[str, int]]
    test: list[tuple[str, int]]
    classes: tuple[str, ...]
    notes: list[str]


class _Part(NamedTuple):
    """The examples in one folder: their class by name, None without classes; and all classes."""

    classes: dict[str, str | None]
    known: set[str]
    notes: list[str]


def layout(found: Listing, by_prefix: bool = False) -> Layout:
    """Returns the examples of a listing, their classes and splits.

    * `dataset.json` of EDM's dataset_tool has the labels by file name; folders are shards.
    * `metadata.jsonl` names the pictures, and has captions, which are not read yet.
    * Otherwise the folders are the classes, or with `by_prefix` the names up to the first "_".
    * Folders train and val (or valid, validation, test) around these are the splits.

    Classes are in alphabetical order, or by number if all names are whole numbers. A folder
    without pictures keeps its number.

    Raises:
      ValueError: for a folder of another layout, or with too few pictures.
    """
    _pass_over(found.passed, ".txt files", found.texts)
    captions = (name for name in found.tables if COCO.fullmatch(name.rpartition("/")[2]))
    _pass_over(found.passed, "files with captions", captions)
    folders = _splits(found)
    parts = [_part(found, folder, by_prefix) for folder in folders or [""]]
    classes = _ordered(set[str]().union(*(part.known for part in parts)))
    number = {name: label for label, name in enumerate(classes)}
    examples = [
        [(name, 0 if kind is None else number[kind]) for name, kind in part.classes.items()]
        for part in parts
    ]
    notes = list(dict.fromkeys(note for part in parts for note in part.notes))
    if folders:
        train, test = examples
        notes.insert(0, f"{folders[0]}/ and {folders[1]}/")
        _check_least(found, dict(zip(folders, map(len, examples), strict=True)))
    else:
        train, test = _split(found, examples[0], max(1, len(classes)))
        notes.insert(0, "split by name")
    present = {label for _, label in train}
    empty = [name for name, label in number.items() if label not in present]
    if empty:
        shown = ", ".join(empty[:5]) + (", ..." if len(empty) > 5 else "")
        notes.append(f"without training images: {shown}")
    return Layout(train, test, tuple(classes) or ("",), notes)


def _splits(found: Listing) -> list[str]:
    """Returns the folders of the splits, train first; [] if the top has no such folders."""
    tops = {name.partition("/")[0] for name in found.files if "/" in name}
    train = [name for name in TRAIN if name in tops]
    test = [name for name in TEST if name in tops]
    beside = any("/" not in name for name in found.files)
    if not train or not test or beside or tops - {*TRAIN, *TEST} or "dataset.json" in found.tables:
        return []
    for other in (*train[1:], *test[1:]):
        for name in [name for name in found.files if name.startswith(f"{other}/")]:
            found.passed.add(f"in {other}/, beside {test[0]}/", name)
    return [train[0], test[0]]


def _part(found: Listing, folder: str, by_prefix: bool) -> _Part:
    """Returns the examples in a folder: "" is all."""
    start = f"{folder}/" if folder else ""
    names = [name for name in found.files if name.startswith(start)]
    if f"{start}dataset.json" in found.tables:
        return _labelled(found, start, names)
    if f"{start}metadata.jsonl" in found.tables:
        return _captioned(found, start, names)
    if by_prefix:
        kinds = {name: _prefix(found, name) for name in names}
        return _Part(dict(kinds), set(kinds.values()), ["classes by prefix"])
    return _foldered(found, start, names)


def _foldered(found: Listing, start: str, names: Sequence[str]) -> _Part:
    """Returns examples whose classes are folders, or that have no classes."""
    depth: list[list[str]] = [[], [], []]
    for name in names:
        depth[min(name.removeprefix(start).count("/"), 2)].append(name)
    beside, within, deeper = depth
    if within and beside:
        raise ValueError(
            f"{found.root} has images in {within[0].rpartition('/')[0]}/ and others, such as "
            f"{beside[0]}, beside it; {EXPECTED}"
        )
    if deeper and not within and not beside:
        raise ValueError(
            f"{found.root} has {len(deeper)} images, all deeper than its class folders, such as "
            f"{deeper[0]}; {EXPECTED}: give path={found.root / deeper[0].split('/')[0]} or such"
        )
    if deeper:
        found.passed.add("deeper than the class folders", deeper[0], len(deeper))
    if not within:
        return _Part(dict.fromkeys(beside), set(), [])
    classes = {
        name.removeprefix(start)
        for name in found.folders
        if name.startswith(start) and "/" not in name.removeprefix(start)
    }
    return _Part({n: n.removeprefix(start).partition("/")[0] for n in within}, classes, [])


def _prefix(found: Listing, name: str) -> str:
    prefix, mark, _ = name.rpartition("/")[2].partition("_")
    if not mark or not prefix:
        raise ValueError(f"{found.root / name} has no class before a '_' in its name")
    return prefix


def _labelled(found: Listing, start: str, names: Sequence[str]) -> _Part:
    """Reads dataset.json of EDM: {"labels": [["00000/img00000000.png", 6], ...] or null}."""
    place = f"{start}dataset.json"
    content = _json(found.read(place, MAX_TABLE), f"{found.root / place}")
    pairs = content.get("labels") if isinstance(content, dict) else ()
    if pairs is None:
        return _Part(dict.fromkeys(names), set(), ["dataset.json without labels"])
    if not isinstance(pairs, list) or not all(map(_is_pair, pairs)):
        raise ValueError(
            f"{found.root / place} has no list of names and labels from 0 to {MAX_CLASSES - 1}; "
            'expected {"labels": [["00000/img00000000.png", 0], ...]}, as dataset_tool.py of EDM '
            "writes it"
        )
    labels = {start + name: str(label) for name, label in pairs}
    kinds = _known(found, names, labels, "dataset.json")
    highest = max((label for _, label in pairs), default=-1)
    return _Part(dict(kinds), set(map(str, range(highest + 1))), ["labels of dataset.json"])


def _is_pair(pair: Any) -> bool:
    if not isinstance(pair, list) or len(pair) != 2 or not isinstance(pair[0], str):
        return False
    return type(pair[1]) is int and 0 <= pair[1] < MAX_CLASSES


def _captioned(found: Listing, start: str, names: Sequence[str]) -> _Part:
    """Reads metadata.jsonl, with "file_name" and a caption in "text" on every line."""
    place = f"{start}metadata.jsonl"
    lines = found.read(place, MAX_TABLE).splitlines()
    entries = [_json(line, f"{found.root / place}, line {i}") for i, line in enumerate(lines, 1)]
    if not all(isinstance(e, dict) and isinstance(e.get("file_name"), str) for e in entries):
        raise ValueError(f"{found.root / place} has lines without a 'file_name'; expected one each")
    kinds = _known(found, names, {start + e["file_name"]: None for e in entries}, "metadata.jsonl")
    captions = sum(isinstance(entry.get("text"), str) for entry in entries)
    return _Part(kinds, set(), [f"metadata.jsonl with {captions:,} captions, which are not used"])


def _known(
    found: Listing, names: Sequence[str], described: Mapping[str, Any], table: str
) -> dict[str, Any]:
    """Returns what a table says of the pictures that are there."""
    there = [name for name in names if name in described]
    _pass_over(found.passed, f"not in {table}", (name for name in names if name not in described))
    files = found.files
    _pass_over(found.passed, f"in {table} only", (name for name in described if name not in files))
    return {name: described[name] for name in there}


def _pass_over(passed: Passed, reason: str, names: Iterable[str]) -> None:
    for name in names:
        passed.add(reason, name)


def _json(text: bytes, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} is no JSON ({error})") from error


def _ordered(names: set[str]) -> list[str]:
    """Sorts the names of classes: by number if all are whole numbers, else by alphabet."""
    if all(name.isascii() and name.isdecimal() and len(name) < 20 for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _split(
    found: Listing, examples: list[tuple[str, int]], num_classes: int
) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """Splits examples by a hash of their names, so that a file more or less moves no other.

    The tenth of the hashes that is lowest is in the test split, and at least the two lowest. The
    highest of each class is in the training split.
    """
    _check_least(found, {"": len(examples)})
    order = sorted((hash_of(name), name, label) for name, label in examples)
    kept = {label: name for _, name, label in order}
    free = [(value, name) for value, name, label in order if kept[label] != name]
    least = MIN_IMAGES["test"]
    if len(free) < least:
        raise ValueError(
            f"{found.root} has {len(examples)} images in {num_classes} classes; training needs "
            f"one of each class, and the report {least} others: add images"
        )
    chosen = {name for i, (value, name) in enumerate(free) if value < TEST_SHARE or i < least}
    train = [example for example in examples if example[0] not in chosen]
    return train, [example for example in examples if example[0] in chosen]


def hash_of(name: str) -> float:
    """Returns a number in [0, 1) that depends on the name only."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _check_least(found: Listing, counts: Mapping[str, int]) -> None:
    """Raises ValueError for too few images to train and to report."""
    least = MIN_IMAGES.values() if len(counts) == 2 else [MIN_FILES]
    for (folder, count), needed in zip(counts.items(), least, strict=True):
        if count < needed:
            passed = "; ".join(found.passed.notes()[:5])
            raise ValueError(
                f"{found.root / folder} has {count} images; expected at least {needed}, to train "
                f"and to test; {EXPECTED}{passed and f'; passed over: {passed}'}"
            )
