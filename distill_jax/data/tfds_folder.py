"""What describes a dataset that TFDS prepared, read without running code that the files name."""

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets
from etils import epath
from tensorflow_datasets.core import DatasetNotFoundError as NotFound
from tensorflow_datasets.core import read_only_builder
from tensorflow_datasets.core.utils import error_utils

MAX_BYTES = 2**22  # Of a description; that of ImageNet has 30 kB.
# TFDS imports the module of any other class that a description names (features/feature.py,
# cls_from_name), which may be a file that lies beside the data.
FEATURES = frozenset(
    name
    for feature in vars(tensorflow_datasets.features).values()
    if isinstance(feature, type)
    and issubclass(feature, tensorflow_datasets.features.FeatureConnector)
    for name in (f"{feature.__module__}.{feature.__name__}", *feature.ALIASES)
)
# The keys of a class: of features.json before TFDS 4.3, and of a protocol buffer in both spellings.
KEYS = ("type", "pythonClassName", "python_class_name")


def open_folder(dataset: str, data_dir: str) -> Any:
    """The builder of a prepared dataset; its features are classes of tensorflow_datasets.features.

    Args:
      dataset: such as "cifar10" or "imagenet_resized/64x64".
      data_dir: where it was prepared; "" is where TFDS looks.

    Raises:
      DatasetNotFoundError: when it is not there.
      ValueError: when its description names other classes, which are not imported, or is damaged.
    """
    with _readable(f"the folders of {dataset}"), error_utils.reraise_with_context(NotFound):
        folder = read_only_builder._find_builder_dir(dataset, data_dir=data_dir or None)
    if folder is None:
        raise NotFound(f"no folder of {dataset}")
    with _readable(f"the description in {folder}"):
        _check(folder / "features.json", _read(folder / "features.json"))
        info = _read(folder / "dataset_info.json")
        _check(folder / "dataset_info.json", info.get("features"))
        return read_only_builder.builder_from_directory(folder)


@contextlib.contextmanager
def _readable(what: str) -> Iterator[None]:
    """Makes one message of whatever a damaged or hostile description leads to."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{what} cannot be read ({error or type(error).__name__})") from error


def _read(path: epath.Path) -> dict[str, Any]:
    """The object in a JSON file."""
    # A pipe or a device would be read for ever; epath takes them for files.
    if not (path.exists() if "://" in str(path) else os.path.isfile(path)):
        raise ValueError(f"{path} is missing; prepare the dataset again")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"{path} has more than {MAX_BYTES:,} bytes; expected a description")
    try:
        parsed = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error})") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{path} holds no object; expected a description")
    return parsed


def _check(path: epath.Path, description: Any) -> None:
    """Raises ValueError for a description that names a class beyond FEATURES."""
    for name in _classes(description):
        if name not in FEATURES:
            raise ValueError(
                f"{path} names the class {name[:200]!r}, whose code would be run; expected the "
                "features of tensorflow_datasets.features alone"
            )


def _classes(part: Any) -> Iterator[str]:
    """The names of the classes in a description, also in JSON that its strings hold."""
    if isinstance(part, str):
        try:
            part = json.loads(part)
        except ValueError:
            return
        yield from _classes(part)
    elif isinstance(part, list):
        for entry in part:
            yield from _classes(entry)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key in KEYS and isinstance(value, str):
                yield value
            else:
                yield from _classes(value)
