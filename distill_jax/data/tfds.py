"""Image datasets of TFDS, read without TensorFlow."""

import dataclasses
import functools
import hashlib
import io
import os
from typing import Annotated

from etils import epath
from tensorflow_datasets.core import DatasetNotFoundError as NotFound
from tensorflow_datasets.core.utils.lazy_imports_utils import array_record_data_source
from tensorflow_datasets.proto import tf_example_pb2

from distill_jax.data import decoding
from distill_jax.data.base import Summary, check_labels
from distill_jax.data.images import MIN_IMAGES, SIDE, Decoded, Encoded, ImageDataset
from distill_jax.data.resizing import RESIZERS
from distill_jax.data.tfds_folder import Prepared, all_names, misplaced, open_folder
from distill_jax.runtime.options import choice, whole
from distill_jax.runtime.registry import suggestion

# Datasets that are published without loss, so that a copy that went through JPEG is another one.
LOSSLESS = ("cifar10", "cifar100")


@dataclasses.dataclass(eq=False)
class Tfds(ImageDataset):
    """An image dataset that TFDS prepared as array_record, read without TensorFlow.

    The image is the feature "image", the label the feature "label", or the only feature of its
    kind. A label that is a whole number without a number of classes is used if num_labels is given.

    Args:
      dataset: name, such as "cifar10" or "imagenet_resized/64x64".
      size: side of the square images in pixels.
      data_dir: directory of prepared datasets; "" is $TFDS_DATA_DIR, or else ~/tensorflow_datasets.
      splits: training split and test split, each a split or a slice, such as "train[:90%]".
      labelled: whether the labels condition the network.
      flip: whether half of the training images are mirrored.
      num_labels: number of labels of the data, 1 for none; None looks it up. If it is given, a run
        can be planned on a machine without the data.
      resize: name in RESIZERS of the function that makes images square and of that size.

    Raises:
      ValueError: when the data are looked up or read: for a dataset that is unknown, not prepared,
        prepared in another format, without images or with other labels, and for a split that is
        unknown or has too few images.
    """

    dataset: str
    size: Annotated[int, SIDE]
    data_dir: str = ""
    splits: tuple[str, str] = ("train", "test")
    labelled: bool = True
    flip: bool = True
    num_labels: Annotated[int, whole(1, high=100_000)] | None = None  # type: ignore[assignment]  # An int after __post_init__.
    resize: Annotated[str, choice(RESIZERS)] = "area"

    def __post_init__(self) -> None:
        data_dir = os.path.expanduser(self.data_dir)
        self._prepared = Splits(self.dataset, data_dir, self.splits, self.num_labels)
        self.train, self.test = (
            Decoded(functools.partial(self._prepared.split, split), self.size, resize=self.resize)
            for split in self.splits
        )
        self.num_labels = self.num_labels or self._prepared.num_labels

    @property
    def title(self) -> str:
        """The name for distances: cifar10-jpeg for a copy of CIFAR-10 that went through JPEG."""
        first = self._prepared.split(self.splits[0])[0].data
        lossy = self.dataset.partition(":")[0] in LOSSLESS and first.startswith(b"\xff\xd8")
        return f"{self.dataset}-jpeg" if lossy else self.dataset

    @property
    def summary(self) -> Summary:
        """See Summary; where the data are not, only the number of classes."""
        try:
            return self._prepared.summary
        except (ValueError, OSError) as error:
            classes = tuple(map(str, range(self.num_labels or 1)))
            return Summary(classes=classes, notes=[f"not read here: {error}"])


@dataclasses.dataclass
class Splits:
    """A prepared dataset on disk, which is opened at its first use.

    Attributes:
      dataset: its name.
      data_dir: directory of prepared datasets.
      splits: training split and test split.
      expected: the number of labels; None if it is unknown.
      caption: the feature with the captions; "" for none. If it is given, labels are not read.
    """

    dataset: str
    data_dir: str
    splits: tuple[str, str]
    expected: int | None
    caption: str = ""

    @functools.cached_property
    def _found(self) -> tuple[Prepared, tuple[str, str | None]]:
        """The folder of the dataset, and the names of its image and label features."""
        found = _open(self.dataset, self.data_dir)
        image = _feature(found, "image", "image")
        label = None if self.caption else _feature(found, "label", "label")
        if image is None:
            raise ValueError(
                f"dataset {self.dataset!r} has the features {', '.join(found.keys)}; expected an "
                "image named 'image', or only one"
            )
        if self.caption and self.caption not in found.texts:
            raise ValueError(
                f"dataset {self.dataset!r} has no text {self.caption!r}; its texts are: "
                f"{', '.join(found.texts) or 'none'}{suggestion(self.caption, found.texts)}"
            )
        if label is None and (self.expected or 0) > 1 and _has_number(found):
            label = "label"
        there = self._classes(found, label)
        if self.expected not in (None, there):
            raise ValueError(
                f"num_labels is {self.expected}, but dataset {self.dataset!r} has {there}"
            )
        # Both splits are checked at once, so that a run does not fail later, at its report.
        for split, least in zip(self.splits, MIN_IMAGES.values(), strict=True):
            _check_split(found, self.dataset, split, least)
        return found, (image, label)

    def _classes(self, found: Prepared, label: str | None) -> int:
        """Returns the number of classes; those of whole numbers are only in the options."""
        return 1 if label is None else found.features[label].num_classes or self.expected or 1

    @property
    def num_labels(self) -> int:
        """The number of labels; 1 without labels."""
        found, (_, label) = self._found
        return self._classes(found, label)

    def split(self, name: str) -> "Records":
        """Opens a split, such as "train[:90%]"."""
        found, keys = self._found
        return Records(found, self.dataset, name, keys, self.num_labels)

    @property
    def summary(self) -> Summary:
        """See Summary; the fingerprint is of the files' names and sizes, slices and classes."""
        found, (image, label) = self._found
        names = found.features[label].names if label else ()
        classes = names or tuple(map(str, range(self.num_labels or 1)))
        notes = [f"version {found.version}", "upright by EXIF"]
        if self.caption:
            notes.append(f"captions of {self.caption}")
        elif label is None and _has_number(found):
            notes.append("its label is a whole number: set num_labels to use it")
        told = (self.caption,) if self.caption else ()
        digest = hashlib.sha256(repr((image, label, classes, *told)).encode())
        for split in self.splits:
            for part in found.files(split):
                size = epath.Path(part.filename).stat().length
                name = os.path.basename(part.filename)
                digest.update(f"{name} {size} {part.skip} {part.take}\n".encode())
            digest.update(b"\n")
        counts = {split: found.splits[split].num_examples for split in self.splits}
        return Summary(counts, classes, notes, fingerprint=digest.hexdigest()[:16])


def _open(dataset: str, data_dir: str) -> Prepared:
    """Returns a prepared dataset; never runs the code that prepares it."""
    try:
        return open_folder(dataset, data_dir)
    except NotFound:
        names = all_names()
    except ValueError as error:
        # Messages of TFDS may have many lines.
        raise ValueError(f"dataset {dataset!r}: {' '.join(str(error).split())}") from error
    if parent := misplaced(dataset, data_dir):
        raise ValueError(
            f"data_dir {data_dir} lies within the dataset {dataset!r}; give the directory that "
            f"holds its folder: data_dir={parent!r}"
        )
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    name = dataset.partition("/")[0].partition(":")[0]
    if name not in names:
        raise ValueError(
            f"unknown dataset {dataset!r}: it is not in {data_dir}, and TFDS has none of that "
            f"name{suggestion(name, names)}"
        )
    raise ValueError(
        f"dataset {dataset!r} is not prepared in {data_dir}; set data_dir to where it is, or "
        f"prepare it there once: {_prepare(dataset, data_dir)}"
    )


def _prepare(dataset: str, data_dir: str) -> str:
    """Returns the command that prepares a dataset."""
    # `tfds build` needs more packages and imports them all.
    return (
        f"python -c \"import tensorflow_datasets as t; t.builder('{dataset}', "
        f"data_dir='{data_dir}', file_format='array_record').download_and_prepare()\" (this may "
        "need TensorFlow, training does not; see docs/data.md)"
    )


def _feature(prepared: Prepared, kind: str, name: str) -> str | None:
    """Returns the key of the feature of a kind: `name`, or else the only one; None otherwise."""
    found = [key for key, feature in prepared.features.items() if feature.kind == kind]
    return name if name in found else found[0] if len(found) == 1 else None


def _has_number(prepared: Prepared) -> bool:
    """Returns whether the label is a whole number without a number of classes."""
    return "label" in prepared.features and prepared.features["label"].kind == "number"


def _check_split(prepared: Prepared, dataset: str, split: str, least: int) -> None:
    """Raises ValueError unless the split exists and has at least `least` images."""
    try:
        there = prepared.splits[split].num_examples
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"dataset {dataset!r} has no split {split!r}; it has "
            f"{', '.join(prepared.splits)}, and slices such as train[:90%]"
        ) from error
    if there < least:
        raise ValueError(
            f"split {split!r} of dataset {dataset!r} has {there} images; the report needs at least "
            f"{least}: choose larger splits"
        )


class Records:
    """A split of a prepared dataset."""

    def __init__(
        self,
        prepared: Prepared,
        dataset: str,
        split: str,
        keys: tuple[str, str | None],
        num_labels: int,
    ):
        self._image, self._label = keys
        self._num_labels, self._name = num_labels, f"{split} of {dataset}"
        if prepared.file_format != "array_record":
            raise ValueError(
                f"dataset {dataset!r} is prepared in {prepared.folder} as "
                f"{prepared.file_format}, which only TensorFlow reads; prepare it in "
                f"another folder: {_prepare(dataset, 'FOLDER')}"
            )
        self._records = array_record_data_source.ArrayRecordDataSource(prepared.files(split))

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Encoded:
        return self.example(index)[0]

    def example(self, index: int, text: str = "") -> tuple[Encoded, list[bytes]]:
        """Returns an image, and the content of the feature `text`, if it is given."""
        name = f"image {index} of {self._name}"
        try:
            features = tf_example_pb2.Example.FromString(self._records[index]).features.feature
            data = features[self._image].bytes_list.value[0]
            label = features[self._label].int64_list.value[0] if self._label else 0
            texts = list(features[text].bytes_list.value) if text else []
        # Damaged files and records raise IndexError, DecodeError, RuntimeError, ...
        except Exception as error:
            raise ValueError(f"{name} cannot be read ({str(error):.300})") from error
        check_labels(label, self._num_labels, name)
        return Encoded(data, label, name), texts

    def check(self, index: int) -> None:
        """Raises ValueError or OSError for an image that cannot be read."""
        data, _, name = self[index]
        decoding.check(io.BytesIO(data), name)
