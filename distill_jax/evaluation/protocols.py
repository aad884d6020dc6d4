"""Protocols that measure samples against a dataset, and real images for comparison."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from distill_jax.data import DATASETS, Dataset, Source
from distill_jax.data.prompts import as_array, captions_of, in_turn
from distill_jax.data.tfds import Tfds
from distill_jax.diffusion.pixels import normalise, to_uint8
from distill_jax.diffusion.spec import has_captions, is_point
from distill_jax.evaluation.adherence import ScenesEvaluator
from distill_jax.evaluation.base import Evaluator, Row
from distill_jax.evaluation.convnet import MIN_UPDATES, ConvNet
from distill_jax.evaluation.feature_cache import pooled_features
from distill_jax.evaluation.feature_networks import FeatureNetwork, load_network
from distill_jax.evaluation.references import MAX_FEATURES
from distill_jax.metrics.features import Classifier
from distill_jax.metrics.frechet import Target, frechet_distance, moments
from distill_jax.metrics.neighbours import neighbour_scores
from distill_jax.metrics.recall import recall
from distill_jax.metrics.retrieval import Retrieval
from distill_jax.metrics.sliced import by_class, mind
from distill_jax.runtime.registry import EVERYTHING, build
from distill_jax.runtime.sharding import make_layout
from distill_jax.sampling.codecs import PIXELS, Codec

MAX_REFERENCE_IMAGES = 50_000  # Largest number of images of a split in the statistics.
BATCH = 64  # Images that a codec encodes and decodes in one call.
SPLITS = ("train", "test")
MLP_MAX_PIXELS = 1024  # Largest number of values in an image for the perceptron as classifier.
# Datasets with a protocol of their own.
OWN = {"shapes": ScenesEvaluator}
NEIGHBOURS = 5_000  # Number of points, and of samples, for the recall of points.


def make_evaluator(data: Mapping[str, Any], features: str = "") -> Evaluator:
    """Returns the evaluator of a dataset; images of one pixel are points.

    Args:
      data: the `data` of a config. A user's own dataset is imported, so it must not come from an
        unchecked manifest, see chosen_data.
      features: published network whose features are compared, see feature_networks.KINDS; "" is a
        classifier that is trained on the data.
    """
    dataset = build(DATASETS, "dataset", data, allow=EVERYTHING, makes=Dataset)
    name = name_of(data, dataset)
    found: Evaluator
    if is_point(dataset.spec.x.shape):
        found = PointEvaluator(dataset)
    elif own := OWN.get(data["name"]):
        found = own(dataset)
    elif features:
        layout = make_layout({"data": -1}, jax.local_devices())  # Only the first process measures.
        found = PublishedEvaluator(dataset, load_network(features, layout=layout))
    else:
        found = ImageEvaluator(dataset, f"FD-{name}")
    kind = f"{data['name']} " if "path" in data else ""
    found.dataset = f"{kind}{name}" + (f" {data['size']}x{data['size']}" if "size" in data else "")
    return found


def prompts_for(data: Mapping[str, Any], num: int) -> list[str]:
    """Returns prompts for `num` samples of a dataset with captions, those of test images in turn.

    Args:
      data: see make_evaluator.
      num: number of samples; [] for data without captions.
    """
    dataset = build(DATASETS, "dataset", data, allow=EVERYTHING, makes=Dataset)
    if not has_captions(dataset.spec):
        return []
    if own := OWN.get(data["name"]):
        return own.prompts(num)
    return in_turn(captions_of(dataset, "test", num), num)


def name_of(data: Mapping[str, Any], dataset: Dataset) -> str:
    """Returns the name of a dataset in distances and protocols.

    Args:
      data: its options in a config.
      dataset: the dataset.
    """
    if "path" in data:  # The name of the folder, so that the distances of two folders differ.
        return pathlib.PurePath(data["path"]).name
    name: str = data.get("dataset", data["name"].rpartition(":")[2])
    if isinstance(dataset, Tfds):
        name = dataset.title
    return name.replace("/", "_")


class ImageEvaluator(Evaluator):
    """The evaluator of images: Frechet distance and recall in the features of a classifier.

    The classifier is trained on the dataset.

    Args:
      dataset: dataset of images.
      name: name of the distance.
      least: number of updates of a ConvNet for small data.
    """

    def __init__(self, dataset: Dataset, name: str, least: int = MIN_UPDATES):
        train, test = (dataset.images(split, MAX_REFERENCE_IMAGES) for split in ("train", "test"))
        labelled = dataset.num_labels > 1
        self.name, self.images = name, len(train.x)
        self._classifier: Classifier | ConvNet
        if np.prod(dataset.spec.x.shape) <= MLP_MAX_PIXELS and labelled:
            train, test = (Source(normalise(part.x), part.label) for part in (train, test))
            self._classifier = Classifier(train.x, train.label)
        else:
            self._classifier = ConvNet(train.x, train.label if labelled else None, least=least)
        self._real = self._classifier.features(train.x)
        self._keep_real(train.x, self._real, _conditions(dataset, train))
        self._moments = moments(self._real)
        halves = _halves(self._real)
        self.floor = {
            "halves": frechet_distance(*map(moments, halves)),
            "test": self._distance(self._classifier.features(test.x)),
        }
        self.real_recall = recall(halves[0], halves[1])
        if labelled:
            self.real_accuracy = self._classifier.accuracy(test.x, test.label)
        elif isinstance(self._classifier, ConvNet):
            self.rotation_accuracy = self._classifier.rotation_accuracy(test.x)

    def _distance(self, features: np.ndarray) -> float:
        """Returns the Frechet distance of features to the features of the training images."""
        return frechet_distance(moments(features), self._moments)

    def _features(self, x: np.ndarray) -> np.ndarray:
        return self._classifier.features(x)

    def _measure(
        self,
        x: np.ndarray,
        features: np.ndarray,
        label: np.ndarray | None,
        target: np.ndarray | None,
    ) -> Row:
        row = {self.name: self._distance(features)}
        if target is not None:
            reference = moments(self._classifier.features(target))
            row[f"{self.name}-to-teacher"] = frechet_distance(moments(features), reference)
        if label is not None and self.real_accuracy is not None:
            row["accuracy"] = self._classifier.accuracy(x, label)
        row["recall"] = recall(self._real, features)
        return row


class PublishedEvaluator(Evaluator):
    """The evaluator of images in a published feature network; see evaluation.quality.

    The distance is named FID only in Inception's features, and FD-<network> in others. The
    classifier, for data with labels, is a logistic regression on the features; for data with
    captions there is a regression to their words, see Retrieval.

    Args:
      dataset: dataset of images of 1 or 3 channels.
      network: the feature network.
    """

    def __init__(self, dataset: Dataset, network: FeatureNetwork):
        self._network = network
        self.name, self._mind = network.distance, network.named("MIND")
        self.weights = network.digest[:8]
        train, test = (dataset.images(split, MAX_REFERENCE_IMAGES) for split in ("train", "test"))
        real, self.images = pooled_features(train.x, network), len(train.x)
        order = np.random.default_rng(0).permutation(len(real))
        self._real, self._target = real[np.sort(order[:MAX_FEATURES])], Target(moments(real))
        self._keep_real(train.x, real, _conditions(dataset, train))
        halves = [real[part] for part in np.array_split(order, 2)]
        tested = pooled_features(test.x, network)
        self.floor = {
            "halves": Target(moments(halves[0])).distance(halves[1]),
            "test": self._target.distance(tested),
        }
        self._retrieval, self._dataset = None, dataset
        if has_captions(dataset.spec):
            texts = [list(captions_of(dataset, split, MAX_REFERENCE_IMAGES)) for split in SPLITS]
            self._retrieval = Retrieval(real, *texts)
            self.real_retrieval = {"test": self._retrieval.rate(tested, texts[1])}
        few = [half[:MAX_FEATURES] for half in halves]
        self.real_recall = neighbour_scores(few[1], few[0])["recall"]
        self.definition = (
            f"{self.name}: Frechet distance to {len(real):,} training images in the features of "
            f"{network.name} (weights {self.weights}, resize {network.resize}, uint8)"
        )
        if dataset.num_labels > 1:
            scaled = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200))
            rows = order[:MAX_FEATURES]
            self._classifier = scaled.fit(real[rows], train.label[rows])
            self.real_accuracy = float(self._classifier.score(tested, test.label))

    def with_codec(self, codec: Codec) -> dict[str, float]:
        if codec is PIXELS:
            return {}
        x = self._dataset.images("test", MAX_REFERENCE_IMAGES).x
        parts = (normalise(x[i : i + BATCH]) for i in range(0, len(x), BATCH))
        decoded = (codec.decode(codec.encode(jnp.asarray(part))) for part in parts)
        features = np.concatenate([self._features(np.asarray(part)) for part in decoded])
        if self._retrieval:
            texts = list(captions_of(self._dataset, "test", MAX_REFERENCE_IMAGES))
            found = self._retrieval.rate(features, texts)
            self.real_retrieval = {**self.real_retrieval, "codec": found}
        return {"codec": self._target.distance(features)}

    def _features(self, x: np.ndarray) -> np.ndarray:
        """Returns the pooled features of images in [-1, 1] or uint8."""
        images = x if x.dtype == np.uint8 else to_uint8(x)
        return self._network([images])["pooled"]

    def _measure(
        self,
        x: np.ndarray,
        features: np.ndarray,
        label: np.ndarray | None,
        target: np.ndarray | None,
    ) -> Row:
        row: Row = {self.name: self._target.distance(features)}
        if target is not None:
            teachers = self._features(target)
            row[f"{self.name}-to-teacher"] = Target(moments(teachers)).distance(features)
        row[self._mind] = mind(self._real, features)[0]
        if label is not None and self.real_accuracy is not None:
            row["accuracy"] = float(self._classifier.score(features, label))
        if label is not None and self._retrieval:
            row["retrieval"] = self._retrieval.rate(features, [str(text) for text in label])
        scores = neighbour_scores(self._real, features)
        return {**row, **{name: scores[name] for name in ("precision", "recall")}}


class PointEvaluator(Evaluator):
    """The evaluator of points, images of one pixel: sliced Wasserstein-2 by class, and recall."""

    name, unit = "SW2", "the plane"

    def __init__(self, dataset: Dataset):
        train, test = (dataset.images(split, MAX_REFERENCE_IMAGES) for split in ("train", "test"))
        self._real, self._label, self.images = _flat(train.x), train.label, len(train.x)
        self._keep_real(train.x, self._real, _conditions(dataset, train))
        self.points = self._real
        points, labels = _halves(self._real), _halves(self._label)
        self.floor = {
            "halves": _mean(by_class(points[0], labels[0], points[1], labels[1])),
            "test": _mean(self._distances(_flat(test.x), test.label)),
        }
        self.real_recall = recall(points[0][:NEIGHBOURS], points[1][:NEIGHBOURS])

    def _distances(self, x: np.ndarray, label: np.ndarray | None) -> dict[int, float]:
        """Returns the sliced W2 to the training points by class, or to all without labels."""
        if label is None:
            label, real = np.zeros(len(x)), np.zeros(len(self._real))
        else:
            real = self._label
        return by_class(x, label, self._real, real)

    def _features(self, x: np.ndarray) -> np.ndarray:
        return _flat(x)

    def _measure(
        self,
        x: np.ndarray,
        features: np.ndarray,
        label: np.ndarray | None,
        target: np.ndarray | None,
    ) -> Row:
        distances = self._distances(features, label)
        return {
            self.name: _mean(distances),
            f"{self.name} worst class": max(distances.values()),
            "recall": recall(self._real[:NEIGHBOURS], features[:NEIGHBOURS]),
        }


def _conditions(dataset: Dataset, source: Source) -> np.ndarray | None:
    """Returns the captions or labels of training images; None if the data have neither."""
    if has_captions(dataset.spec):
        return as_array(captions_of(dataset, "train", MAX_REFERENCE_IMAGES))
    return source.label if dataset.num_labels > 1 else None


def _halves(x: np.ndarray) -> list[np.ndarray]:
    """Returns two random halves of the rows, always the same ones."""
    order = np.random.default_rng(0).permutation(len(x))
    return [x[part] for part in np.array_split(order, 2)]


def _flat(x: np.ndarray) -> np.ndarray:
    """Returns images as vectors (n, h w c), in [-1, 1]."""
    return normalise(x).reshape(len(x), -1)


def _mean(values: dict[int, float]) -> float:
    """Returns the mean over classes."""
    return float(np.mean(list(values.values())))
