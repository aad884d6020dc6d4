"""Image files of random blocks, for the datasets that read files."""

import io
import os
import pathlib

import numpy as np
import tensorflow_datasets
from etils import epath
from PIL import Image

from tests.toys import ROOT

CIFAR10 = pathlib.Path(
    os.environ.get("DISTILL_JAX_TEST_DATA", ROOT.parent / "shared" / "data" / "tfds")
)


def picture(number, height=8, width=10):
    """Returns a picture, different for every number."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(x):
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(root, count=30, classes=("cat", "dog", "emu")):
    """Writes picture number i to the folder of class i modulo the number of classes."""
    for i in range(count):
        path = root / classes[i % len(classes)] / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(i)))
    return root


class Pictures(tensorflow_datasets.core.GeneratorBasedBuilder):
    """A TFDS dataset of 27 training and 6 test pictures in 3 classes."""

    VERSION = tensorflow_datasets.core.Version("1.0.0")
    FEATURES = {
        "image": tensorflow_datasets.features.Image(shape=(None, None, 3)),
        "label": tensorflow_datasets.features.ClassLabel(num_classes=3),
        "coarse_label": tensorflow_datasets.features.ClassLabel(num_classes=2),
    }
    code_path = epath.Path(__file__)  # To find it, TFDS needs a library that it may lack.

    def _info(self):
        features = tensorflow_datasets.features.FeaturesDict(self.FEATURES)
        return tensorflow_datasets.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(27), "test": self._generate_examples(6, 100)}

    def _generate_examples(self, count, start=0):
        for i in range(start, start + count):
            image = io.BytesIO(png(picture(i)))
            yield i, {"image": image, "label": i % 3, "coarse_label": i % 2}


class Rooms(Pictures):
    """A TFDS dataset of pictures without labels, whose feature has another name."""

    FEATURES = {"photo": tensorflow_datasets.features.Image(shape=(None, None, 3))}

    def _generate_examples(self, count, start=0):
        for i, example in super()._generate_examples(count, start):
            yield i, {"photo": example["image"]}


class Lossy(Pictures):
    """A TFDS dataset of pictures that went through JPEG."""

    def _generate_examples(self, count, start=0):
        for i, example in super()._generate_examples(count, start):
            image = io.BytesIO()
            Image.fromarray(picture(i)).save(image, "JPEG")
            image.seek(0)
            yield i, {**example, "image": image}


class Numbered(Pictures):
    """A TFDS dataset whose labels are whole numbers without a number of classes."""

    FEATURES = {
        "image": Pictures.FEATURES["image"],
        "label": tensorflow_datasets.features.Scalar(np.int64),
    }

    def _generate_examples(self, count, start=0):
        for i, example in super()._generate_examples(count, start):
            yield i, {key: example[key] for key in self.FEATURES}


class Sounds(Pictures):
    """A TFDS dataset of numbers without pictures."""

    FEATURES = {"number": np.int64}

    def _generate_examples(self, count, start=0):
        for i in range(count):
            yield i, {"number": i}


class Told(Pictures):
    """A TFDS dataset of pictures with captions in features of five kinds."""

    FEATURES = {
        "image": Pictures.FEATURES["image"],
        "label": Pictures.FEATURES["label"],
        "caption": tensorflow_datasets.features.Text(),
        "plain": tensorflow_datasets.features.Scalar(np.str_),
        "lines": tensorflow_datasets.features.Sequence(tensorflow_datasets.features.Text()),
        # As in coco_captions.
        "captions": tensorflow_datasets.features.Sequence({"text": np.str_, "id": np.int64}),
        "told": tensorflow_datasets.features.FeaturesDict(
            {"en": tensorflow_datasets.features.Text()}
        ),
    }

    def _generate_examples(self, count, start=0):
        for i, example in super()._generate_examples(count, start):
            texts = [f"picture {i}", f"again {i}"]
            told = {"caption": texts[0], "plain": texts[0], "told": {"en": texts[0]}}
            several = {"lines": texts, "captions": [{"text": t, "id": 0} for t in texts]}
            if i % 9 == 8:
                several = {"lines": [], "captions": []}
            example = {key: example[key] for key in ("image", "label")}
            yield i, {**example, **told, **several}


def write_tfds(root, builder=Pictures):
    """Prepares a dataset as a user does, in array_record, which needs no TensorFlow."""
    tensorflow_datasets.disable_progress_bar()
    config = tensorflow_datasets.download.DownloadConfig(try_download_gcs=False)
    builder(data_dir=str(root), file_format="array_record").download_and_prepare(
        download_config=config
    )
    return root
