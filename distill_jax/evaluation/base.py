"""The base class of protocols that measure samples."""

import abc
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from distill_jax.sampling.codecs import Codec

Row = dict[str, Any]


class Evaluator(abc.ABC):
    """The protocol of one dataset: its distance, its statistics, and the measures of real images.

    Attributes:
      name: name of the distance, a key of every row.
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
    """

    name: str
    definition: str = ""
    dataset: str = ""
    images: int
    weights: str = ""
    floor: dict[str, float]
    real_recall: float
    real_accuracy: float | None = None
    rotation_accuracy: float | None = None

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
        }

    def with_codec(self, codec: Codec) -> dict[str, float]:
        """Returns more floors: "codec" is that of test images that were encoded and decoded."""
        return {}

    @threadpool_limits.wrap(limits=1)  # Matrices this small are slower on several threads.
    def measure(self, x: np.ndarray, label: np.ndarray | None, target: np.ndarray | None) -> Row:
        """Returns the distances, accuracy and recall of samples.

        Args:
          x: samples.
          label: labels of the samples, None for a network without labels.
          target: the guided teacher's samples from the same noise; None without a teacher, and for
            the teacher's own samples, whose distance would be a rounding error.
        """
        row = self._measure(x, label, target)
        if target is not None:
            row["l2"] = float(np.sqrt(np.mean((x - target) ** 2)))
        return row

    @abc.abstractmethod
    def _measure(self, x: np.ndarray, label: np.ndarray | None, target: np.ndarray | None) -> Row:
        """Returns the row without l2."""
