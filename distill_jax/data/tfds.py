"""Any image dataset of TFDS, without TensorFlow."""

import os
from typing import Any

import tensorflow_datasets
from tensorflow_datasets.core import read_only_builder

from distill_jax.data.images import Decoded, Encoded, Images
from distill_jax.tables import suggestion


def tfds(
    dataset: str,
    size: int,
    data_dir: str = "",
    train_split: str = "train",
    held_out_split: str = "test",
    labelled: bool = True,
    flip: bool = True,
) -> Images:
    """An image dataset that TFDS prepared as array_record, read without TensorFlow.

    The image is the feature "image", the label "label", or the only one of its kind.

    Args:
      dataset: such as "cifar10" or "imagenet_resized/64x64".
      size: of the images; see square.
      data_dir: where it was prepared; "" is $TFDS_DATA_DIR, or else ~/tensorflow_datasets.
      train_split: a split or a slice of one, such as "train[:90%]".
      held_out_split: another.
      labelled: whether a network is given the labels.
      flip: whether half of the training images are mirrored.

    Raises:
      ValueError: for a dataset that is unknown, not prepared, prepared in another format or
        without images, and for an unknown split.
    """
    builder = _builder(dataset, os.path.expanduser(data_dir))
    features = builder.info.features
    image = _feature(features, "Image", "image")
    label = _feature(features, "ClassLabel", "label")
    if image is None:
        raise ValueError(
            f"dataset {dataset!r} has the features {', '.join(features)}; expected an image named "
            "'image', or only one"
        )
    stored = (_Records(builder, dataset, s, (image, label)) for s in (train_split, held_out_split))
    train, held_out = (Decoded(split, size) for split in stored)
    num_labels = 1 if label is None else features[label].num_classes
    return Images(train, held_out, num_labels, labelled, flip)


def _builder(dataset: str, data_dir: str) -> Any:
    """What describes a prepared dataset; never the code that prepares it, which may be newer."""
    try:
        return read_only_builder.builder_from_files(dataset, data_dir=data_dir or None)
    except tensorflow_datasets.core.DatasetNotFoundError:
        names = tensorflow_datasets.list_builders(with_community_datasets=False)
    except ValueError as error:
        raise ValueError(f"dataset {dataset!r}: {error}") from error
    data_dir = data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    name = dataset.partition("/")[0].partition(":")[0]
    if name not in names:
        raise ValueError(
            f"unknown dataset {dataset!r}: it is not in {data_dir}, and TFDS knows none of that "
            f"name{suggestion(name, names)}"
        )
    raise ValueError(
        f"dataset {dataset!r} is not prepared in {data_dir}; set data_dir to where it is, or "
        f"prepare it there once: {_prepare(dataset, data_dir)}"
    )


def _prepare(dataset: str, data_dir: str) -> str:
    # Not `tfds build`, which needs still more packages and imports them all.
    return (
        f"python -c \"import tensorflow_datasets as t; t.builder('{dataset}', "
        f"data_dir='{data_dir}', file_format='array_record').download_and_prepare()\" (this may "
        "need TensorFlow, training does not; see docs/data.md)"
    )


def _feature(features: Any, kind: str, name: str) -> str | None:
    """The key of the feature of a kind that is called `name`, or else of the only one."""
    cls = getattr(tensorflow_datasets.features, kind)
    found = [key for key, feature in features.items() if isinstance(feature, cls)]
    return name if name in found else found[0] if len(found) == 1 else None


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
        except ValueError as error:
            raise ValueError(
                f"dataset {dataset!r} has no split {split!r}; it has "
                f"{', '.join(builder.info.splits)}, and slices such as train[:90%]"
            ) from error

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Encoded:
        record = self._records[index]
        label = record[self._label] if self._label else 0
        return Encoded(record[self._image], label, f"image {index} of {self._name}")
