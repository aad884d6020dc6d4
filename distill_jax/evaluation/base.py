"""The base class of protocols that measure samples."""

import abc
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from distill_jax.diffusion.pixels import to_uint8
from distill_jax.metrics.colour import colour_scores
from distill_jax.metrics.diversity import diversity
from distill_jax.sampling.codecs import Codec

Row = dict[str, Any]
# Keys of every row, and the types of their values.
ROW = (
    ("role", str),
    ("sampler", str),
    ("stage", str),
    ("num_steps", int),
    ("w", float),
    ("calls", int),
    ("seconds_per_image", float),
)
SAMPLED = 2000  # Largest number of real images whose chroma, contrast and diversity are measured.


class Evaluator(abc.ABC):
    """The protocol of one dataset: its distance, its statistics, and the measures of real images.

    Attributes:
      name: name of the distance, a key of every row.
      unit: what the distances of diversity are measured in.
      definition: what the distance is, for evaluators of published networks; "" for others.
      dataset: name of the dataset, with the side of its images where that is an option.
      images: number of training images that samples are compared with.
      weights: first digits of the SHA-256 of a published network's file; "" without one.
      floor: distances between real images: two halves of the training images ("halves"), and
        training against test images ("test"). Others are told by the evaluators that have them.
      real_recall: recall of one half of the training images by the other.
      real_accuracy: accuracy of the classifier on test images, None without labels.
      rotation_accuracy: accuracy of a classifier of quarter turns on test images, 0.25 by chance,
        for data without labels; it shows how good the features are. None with labels.
      real_retrieval: fraction of test images that are found by their captions ("test"), and of
        those that a codec has encoded and decoded ("codec"); {} without captions.
      points: training points (n, 2), which pictures of samples lie over; None for images.
    """

    name: str
    unit: str = "the features"
    definition: str = ""
    dataset: str = ""
    images: int
    weights: str = ""
    floor: dict[str, float]
    real_recall: float
    real_accuracy: float | None = None
    rotation_accuracy: float | None = None
    real_retrieval: Mapping[str, float] = MappingProxyType({})
    points: np.ndarray | None = None

    def summary(self) -> dict[str, Any]:
        """Returns the name of the distance, its reference, and the measures of real images."""
        reference = {"dataset": self.dataset, "images": self.images, "weights": self.weights}
        return {
            "name": self.name,
            "definition": self.definition,
            "reference": reference,
            "floor": self.floor,
            "real_recall": self.real_recall,
            "real_accuracy": self.real_accuracy,
            "rotation_accuracy": self.rotation_accuracy,
            "real_retrieval": dict(self.real_retrieval),
        }

    def with_codec(self, codec: Codec) -> dict[str, float]:
        """Returns more floors: "codec" is that of test images that were encoded and decoded.

        A published network measures them too, and how often they are found by their captions.
        """
        return {}

    def _keep_real(self, x: np.ndarray, features: np.ndarray, condition: np.ndarray | None) -> None:
        """Measures chroma, contrast and diversity of real images, for `real`.

        Args:
          x: training images (n, h, w, c), in [-1, 1] or uint8.
          features: their features (n, d).
          condition: their labels or captions (n,); None without either.
        """
        rows = np.random.default_rng(0).permutation(len(x))[:SAMPLED]
        kinds = {True: None if condition is None else condition[rows], False: None}
        self._real_colours = _colours(x[rows])
        self._real_diversity = {key: diversity(features[rows], of) for key, of in kinds.items()}

    def real(self, conditional: bool) -> Row:
        """Returns chroma, contrast, recall and diversity of real images.

        Args:
          conditional: whether diversity is that within a label or caption, or that of all images.
        """
        found = {**self._real_colours, "recall": self.real_recall}
        apart = self._real_diversity[conditional]
        return found if apart is None else {**found, "diversity": apart}

    @threadpool_limits.wrap(limits=1)  # Matrices this small are slower on several threads.
    def measure(
        self,
        x: np.ndarray,
        label: np.ndarray | None,
        target: np.ndarray | None,
        num: int | None = None,
    ) -> Row:
        """Returns the distances, accuracy, recall, chroma, contrast and diversity of samples.

        Args:
          x: samples.
          label: labels or prompts of the samples, None for a network without either.
          target: the guided teacher's samples from the same noise; None without a teacher, and for
            the teacher's own samples, whose distance would be a rounding error.
          num: number of the first samples that are measured, None for all. The others repeat labels
            or prompts, and count only for diversity; see batched.repeats.
        """
        features = self._features(x)
        few = slice(num)
        asked = None if label is None else label[few]
        target = None if target is None else target[few]
        row = self._measure(x[few], features[few], asked, target)
        if target is not None:
            row["l2"] = float(np.sqrt(np.mean((x[few] - target) ** 2)))
        row.update(_colours(x[few]))
        apart = diversity(features, label)
        return row if apart is None else {**row, "diversity": apart}

    @abc.abstractmethod
    def _features(self, x: np.ndarray) -> np.ndarray:
        """Returns the features (n, d) in which diversity is measured."""

    @abc.abstractmethod
    def _measure(
        self,
        x: np.ndarray,
        features: np.ndarray,
        label: np.ndarray | None,
        target: np.ndarray | None,
    ) -> Row:
        """Returns the row without l2, chroma, contrast and diversity."""


def _colours(x: np.ndarray) -> dict[str, float]:
    """Returns chroma and contrast of images in [-1, 1] or uint8; {} for points."""
    return colour_scores(x if x.dtype == np.uint8 else to_uint8(x))
