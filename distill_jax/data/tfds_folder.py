"""Opening of datasets that TFDS prepared, without running code that their files name."""

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

MAX_BYTES = 2**22  # Limit of a description file; ImageNet's has 30 kB.
# TFDS imports the module of any other class that a description names (features/feature.py,
# cls_from_name), which may be a file that lies beside the data.
FEATURES = frozenset(
    name
    for feature in vars(tensorflow_datasets.features).values()
    if isinstance(feature, type)
    and issubclass(feature, tensorflow_datasets.features.FeatureConnector)
    for name in (f"{feature.__module__}.{feature.__name__}", *feature.ALIASES)  # type: ignore[attr-defined]  # TFDS has no types.
)
# Keys that hold a class name: in features.json before TFDS 4.3, and in both protobuf spellings.
KEYS = ("type", "pythonClassName", "python_class_name")


def open_folder(dataset: str, data_dir: str) -> Any:
    """Returns the builder of a prepared dataset, if its features are classes of TFDS only.

    Args:
      dataset: name, such as "cifar10" or "imagenet_resized/64x64".
      data_dir: directory of prepared datasets; "" is TFDS's default.

    Raises:
      DatasetNotFoundError: if the dataset is not there.
      ValueError: if its description is damaged, or names other classes, which are not imported.
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
    """Turns any error that a damaged or hostile description causes into one ValueError."""
    try:
        yield
    except (OSError, ValueError):
        raise
    except Exception as error:
        raise ValueError(f"{what} cannot be read ({error or type(error).__name__})") from error


def _read(path: epath.Path) -> dict[str, Any]:
    """Reads the object in a JSON file."""
    # Reading a pipe or a device would not end, and epath treats them as files.
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
    """Raises ValueError for a description that names a class outside FEATURES."""
    for name in _classes(description):
        if name not in FEATURES:
            raise ValueError(
                f"{path} names the class {name[:200]!r}, whose code would be run; expected the "
                "features of tensorflow_datasets.features only"
            )


def _classes(part: Any) -> Iterator[str]:
    """Yields the class names in a description, also those in JSON inside its strings."""
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
