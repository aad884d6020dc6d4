"""Folders that TFDS prepared, read as data: nothing that their files name is imported or followed.

TFDS itself imports the module of any class that features.json names. Here both descriptions are
read as JSON, and the features are built from the few kinds that a dataset of images needs.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import tensorflow_datasets
from etils import epath
from tensorflow_datasets.core import DatasetNotFoundError as NotFound
from tensorflow_datasets.core import naming, read_only_builder
from tensorflow_datasets.core import splits as splits_lib
from tensorflow_datasets.core.utils import error_utils

from distill_jax.runtime.files import read_bytes, read_json

MAX_BYTES = 2**22  # Limit of a description file; ImageNet's has 30 kB.
MAX_CLASSES = 100_000
MAX_EXAMPLES = 2**40
# The last part of the name of a feature's class, and what it is here. Other features are ignored.
KINDS = {"Image": "image", "LabeledImage": "image", "ClassLabel": "label", "Scalar": "number"}
KINDS["Tensor"] = "number"
NAME = re.compile(r"\w[\w.+-]*")  # Of a dataset or a split, which become parts of file names.
TEMPLATE = re.compile(
    r"([\w.+/-]|\{(DATASET|SPLIT|FILEFORMAT|SHARD_INDEX|NUM_SHARDS|SHARD_X_OF_Y)\})+"
)


class Feature(NamedTuple):
    """A feature of a dataset.

    Attributes:
      kind: a value of KINDS.
      num_classes: number of classes of a label; 0 for other kinds.
      names: names of the classes, if the folder has them.
    """

    kind: str
    num_classes: int = 0
    names: tuple[str, ...] = ()


class Prepared(NamedTuple):
    """A prepared dataset.

    Attributes:
      folder: folder of its files.
      version: its version.
      file_format: format of its files, such as "array_record".
      features: features of KINDS by key.
      keys: keys of all features.
      texts: keys of the texts in examples, or of lists of them, such as "captions/text".
      splits: examples, files and slices of every split, see tfds.core.SplitInfo.
    """

    folder: epath.Path
    version: str
    file_format: str
    features: dict[str, Feature]
    keys: tuple[str, ...]
    texts: tuple[str, ...]
    splits: splits_lib.SplitDict

    def files(self, split: str) -> list[Any]:
        """Returns which examples of which files a split or slice has.

        Raises:
          ValueError: for a file that is missing, or no regular file.
        """
        found = list(self.splits[split].file_instructions)
        for part in found:
            if "://" not in str(part.filename) and not os.path.isfile(part.filename):
                raise ValueError(f"{part.filename} is missing; prepare the dataset again")
        return found


def open_folder(dataset: str, data_dir: str) -> Prepared:
    """Reads the descriptions of a prepared dataset.

    Args:
      dataset: name, such as "cifar10" or "imagenet_resized/64x64".
      data_dir: directory of prepared datasets; "" is TFDS's default.

    Raises:
      DatasetNotFoundError: if the dataset is not there.
      ValueError: if its description is damaged, or names files outside the folder.
    """
    folder = _find(dataset, data_dir)
    if folder is None:
        raise NotFound(f"no folder of {dataset}")
    with _readable(f"the description in {folder}"):
        features, entries = _features(folder)
        place = folder / "dataset_info.json"
        info = _read(place)
        file_format, version = info.get("fileFormat", "tfrecord"), info.get("version", "")
        parts = info.get("splits", [])
        if not isinstance(file_format, str) or not isinstance(version, str):
            raise ValueError(f"{place} has no format and version in words")
        if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
            raise ValueError(f"{place} has no list of splits")
        name = _name(info.get("name"), place)
        splits = [_split(folder, name, _name(file_format, place), part) for part in parts]
        known = features, tuple(entries), tuple(_texts(entries))
        return Prepared(folder, version, file_format, *known, splits_lib.SplitDict(splits))


def misplaced(dataset: str, data_dir: str) -> str:
    """Returns the directory that should have been given as data_dir; "" if none near has it."""
    place = epath.Path(data_dir)
    for parent in list(place.parents)[:3] if data_dir else []:
        with contextlib.suppress(ValueError, OSError):
            if _find(dataset, str(parent)):
                return str(parent)
    return ""


def _find(dataset: str, data_dir: str) -> epath.Path | None:
    """Returns the folder of the newest version of a dataset, within the directory."""
    root = os.path.abspath(data_dir) if data_dir and "://" not in data_dir else data_dir
    with _readable(f"the folders of {dataset}"), error_utils.reraise_with_context(NotFound):
        folder = read_only_builder._find_builder_dir(dataset, data_dir=root or None)
    if folder is not None and ".." in folder.parts:
        raise ValueError(f"{folder} is outside the directory of prepared datasets")
    return folder


@contextlib.contextmanager
def _readable(what: str) -> Iterator[None]:
    """Turns any error that a damaged or hostile description causes into one ValueError."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{what} cannot be read ({error or type(error).__name__})") from error


def _read(path: epath.Path) -> dict[str, Any]:
    """Reads the object in a JSON file."""
    try:
        content: dict[str, Any] = read_json(path, MAX_BYTES)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; prepare the dataset again") from None
    return content


def _features(folder: epath.Path) -> tuple[dict[str, Feature], dict[str, Any]]:
    """Returns the features of KINDS, and the descriptions of all, in the order of the file."""
    place = folder / "features.json"
    entries = _inner(_read(place))
    if entries is None:
        raise ValueError(
            f"{place} has no features by name, as TFDS writes them since 4.5; prepare the dataset "
            "again"
        )
    found = {}
    for key, entry in entries.items():
        name = entry.get("pythonClassName", entry.get("python_class_name"))
        kind = KINDS.get(name.rpartition(".")[2]) if isinstance(name, str) else None
        if kind == "label":
            found[key] = _label(folder, key, entry)
        elif kind == "image" or (kind == "number" and _is_whole(entry)):
            found[key] = Feature(kind)
    return found, entries


def _inner(entry: Any) -> dict[str, Any] | None:
    """Returns the descriptions in that of a dict of features; None for another one."""
    entry = entry if isinstance(entry, dict) else {}
    whole = entry.get("featuresDict", entry.get("features_dict"))
    found = whole.get("features") if isinstance(whole, dict) else None
    if not isinstance(found, dict) or not all(isinstance(part, dict) for part in found.values()):
        return None
    return found


def _texts(entries: Mapping[str, Any], prefix: str = "", lists: int = 0) -> Iterator[str]:
    """Yields the keys of texts, and of lists of texts, by descriptions of features."""
    for key, entry in entries.items():
        sequence = entry.get("sequence")
        depth = lists + isinstance(sequence, dict)
        if depth > 1:
            continue  # Lists of lists are stored in another way.
        part = sequence.get("feature") if isinstance(sequence, dict) else entry
        if inner := _inner(part):
            yield from _texts(inner, f"{prefix}{key}/", depth)
        elif _is_text(part):
            yield f"{prefix}{key}"


def _is_text(entry: Any) -> bool:
    """Returns whether a description is that of a text, or of a tensor of one string."""
    if not isinstance(entry, dict):
        return False
    name, tensor = entry.get("pythonClassName", entry.get("python_class_name")), entry.get("tensor")
    kind = name.rpartition(".")[2] if isinstance(name, str) else ""
    if kind == "Text":
        return True
    return kind in ("Scalar", "Tensor") and isinstance(tensor, dict) and _one(tensor, "string")


def _one(tensor: Mapping[str, Any], dtype: str) -> bool:
    """Returns whether a tensor has no axes, and a type that matches."""
    scalar = not (tensor.get("shape") or {}).get("dimensions")
    return scalar and re.fullmatch(dtype, str(tensor.get("dtype"))) is not None


def _is_whole(entry: Mapping[str, Any]) -> bool:
    """Returns whether a tensor is one integer."""
    tensor = entry.get("tensor", {})
    return isinstance(tensor, dict) and _one(tensor, r"u?int(8|16|32|64)")


def _label(folder: epath.Path, key: str, entry: Mapping[str, Any]) -> Feature:
    """Returns a label, with the names of its classes if they are beside the description."""
    described = entry.get("classLabel", entry.get("class_label"))
    described = described if isinstance(described, dict) else {}
    count = _number(described.get("numClasses", described.get("num_classes")), MAX_CLASSES)
    if not count:
        raise ValueError(
            f"{folder}/features.json: the label {key!r} has no number of classes from 1 to "
            f"{MAX_CLASSES:,}"
        )
    place = folder / f"{key}.labels.txt"
    names: tuple[str, ...] = ()
    if NAME.fullmatch(key) and place.exists():
        lines = read_bytes(place, MAX_BYTES).decode("utf-8", "replace").splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
    return Feature("label", count, names if len(names) == count else ())


def _split(folder: epath.Path, name: str, file_format: str, part: Mapping[str, Any]) -> Any:
    """Returns a split of dataset_info.json, whose files lie in the folder."""
    place = folder / "dataset_info.json"
    split = _name(part.get("name"), place)
    template = part.get("filepathTemplate", "")
    inside = not str(template).startswith("/") and ".." not in str(template)
    if template and not (isinstance(template, str) and inside and TEMPLATE.fullmatch(template)):
        raise ValueError(
            f"{place} has the filepathTemplate {str(template)[:200]!r}; expected names of files "
            "within the folder"
        )
    given = part.get("shardLengths", [])
    lengths = [_number(n, MAX_EXAMPLES) for n in given] if isinstance(given, list) else [None]
    if None in lengths:
        raise ValueError(f"{place}: the split {split!r} has no whole numbers as shardLengths")
    form = naming.ShardedFileTemplate(
        data_dir=folder,
        template=template,
        dataset_name=name,
        split=split,
        filetype_suffix=file_format,
    )
    return splits_lib.SplitInfo(
        name=split,
        shard_lengths=lengths,
        num_bytes=_number(part.get("numBytes", 0), 2**60) or 0,
        filename_template=form,
    )


def _name(value: Any, place: epath.Path) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value) or ".." in value:
        raise ValueError(f"{place} has {str(value)[:200]!r} as a name; expected one word")
    return value


def _number(value: Any, high: int) -> int | None:
    """Returns a whole number from 0 to `high`, which is a string in JSON of protocol buffers."""
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,18}", str(value), re.ASCII):
        return None
    return int(value) if int(value) <= high else None


def all_names() -> list[str]:
    """Returns the names of the datasets that TFDS can prepare."""
    names: list[str] = tensorflow_datasets.list_builders(with_community_datasets=False)
    return names
