"""Image datasets of TFDS, read without TensorFlow."""

import dataclasses
import functools
import os
from typing import Annotated, Any

import tensorflow_datasets

from distill_jax.data.images import MIN_IMAGES, SIDE, Decoded, Encoded, ImageDataset, Stored
from distill_jax.data.resizing import RESIZERS
from distill_jax.data.tfds_folder import open_folder
from distill_jax.runtime.options import choice, whole
from distill_jax.runtime.registry import suggestion


@dataclasses.dataclass(eq=False)
class Tfds(ImageDataset):
    """An image dataset that TFDS prepared as array_record, read without TensorFlow.

    The image is the feature "image", the label the feature "label", or the only feature of its
    kind.

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
        prepared in another format, with features that are no classes of TFDS, without images or
        with other labels, and for a split that is unknown or has too few images.
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
        prepared = _Prepared(self.dataset, data_dir, self.splits, self.num_labels)
        self.train, self.test = (
            Decoded(functools.partial(prepared.split, split), self.size, resize=self.resize)
            for split in self.splits
        )
        self.num_labels = self.num_labels or prepared.num_labels


@dataclasses.dataclass
class _Prepared:
    """A prepared dataset on disk, which is opened at its first use."""

    dataset: str
    data_dir: str
    splits: tuple[str, str]
    expected: int | None

    @functools.cached_property
    def _found(self) -> tuple[Any, tuple[str, str | None]]:
        """The builder of the dataset, and the names of its image and label features."""
        builder = _builder(self.dataset, self.data_dir)
        features = builder.info.features
        image = _feature(features, "Image", "image")
        label = _feature(features, "ClassLabel", "label")
        if image is None:
            raise ValueError(
                f"dataset {self.dataset!r} has the features {', '.join(features)}; expected an "
                "image named 'image', or only one"
            )
        there = 1 if label is None else features[label].num_classes
        if self.expected not in (None, there):
            raise ValueError(
                f"num_labels is {self.expected}, but dataset {self.dataset!r} has {there}"
            )
        # Both splits are checked at once, so that a run does not fail later, at its report.
        for split, least in zip(self.splits, MIN_IMAGES.values(), strict=True):
            _check_split(builder, self.dataset, split, least)
        return builder, (image, label)

    @property
    def num_labels(self) -> int:
        """The number of labels; 1 without labels."""
        builder, (_, label) = self._found
        return 1 if label is None else builder.info.features[label].num_classes

    def split(self, name: str) -> Stored:
        """Opens a split, such as "train[:90%]"."""
        builder, keys = self._found
        return _Records(builder, self.dataset, name, keys)


def _builder(dataset: str, data_dir: str) -> Any:
    """Returns the read-only builder of a prepared dataset; never runs the code that prepares it."""
    try:
        return open_folder(dataset, data_dir)
    except tensorflow_datasets.core.DatasetNotFoundError:
        names = tensorflow_datasets.list_builders(with_community_datasets=False)
    except ValueError as error:
        raise ValueError(f"dataset {dataset!r}: {error}") from error
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


def _feature(features: Any, kind: str, name: str) -> str | None:
    """Returns the key of the feature of a kind: `name`, or else the only one; None otherwise."""
    cls = getattr(tensorflow_datasets.features, kind)
    found = [key for key, feature in features.items() if isinstance(feature, cls)]
    return name if name in found else found[0] if len(found) == 1 else None


def _check_split(builder: Any, dataset: str, split: str, least: int) -> None:
    """Raises ValueError unless the split exists and has at least `least` images."""
    try:
        there = builder.info.splits[split].num_examples
    except ValueError as error:
        raise ValueError(
            f"dataset {dataset!r} has no split {split!r}; it has "
            f"{', '.join(builder.info.splits)}, and slices such as train[:90%]"
        ) from error
    if there < least:
        raise ValueError(
            f"split {split!r} of dataset {dataset!r} has {there} images; the report needs at least "
            f"{least}: choose larger splits"
        )


class _Records:
    """A split of a prepared dataset."""

    def __init__(self, builder: Any, dataset: str, split: str, keys: tuple[str, str | None]):
        self._image, self._label = keys
        self._name = f"{split} of {dataset}"
        try:
            self._records = builder.as_data_source(
                split, decoders={self._image: tensorflow_datasets.decode.SkipDecoding()}
            )
        except NotImplementedError as error:
            raise ValueError(
                f"dataset {dataset!r} is prepared in {builder.data_dir} as "
                f"{builder.info.file_format.value}, which only TensorFlow reads; prepare it in "
                f"another folder: {_prepare(dataset, 'FOLDER')}"
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Encoded:
        record = self._records[index]
        label = record[self._label] if self._label else 0
        return Encoded(record[self._image], label, f"image {index} of {self._name}")
