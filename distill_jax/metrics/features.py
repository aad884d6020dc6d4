"""Features and labels from a small classifier trained on the dataset itself."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

WIDTHS = (256, 64)
COPIES = 4  # Noisy copies of every training image, so that small blemishes do not matter.
NOISE = 0.25


class Classifier:
    """A two-layer perceptron on flattened images; its second hidden layer gives the features.

    The Frechet distance in its features is `FD-<dataset>`. It is comparable only within the same
    protocol, and it is not FID.

    Args:
      x: training images (n, h, w, c) in [-1, 1].
      label: classes (n,) of the images.
      seed: seed of initialisation, order and noise; 0 in the protocol.
    """

    def __init__(self, x: np.ndarray, label: np.ndarray, seed: int = 0):
        rng = np.random.default_rng(seed)
        noisy = [x + rng.normal(scale=NOISE, size=x.shape) for _ in range(COPIES)]
        self._network = MLPClassifier(WIDTHS, alpha=0.1, max_iter=60, random_state=seed)
        # Matrices this small are slower on several threads, and far slower on a busy machine.
        with warnings.catch_warnings(), threadpool_limits(limits=1):
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._network.fit(_flat(np.concatenate([x, *noisy])), np.tile(label, 1 + COPIES))

    def features(self, x: np.ndarray) -> np.ndarray:
        """Returns the activations of the second hidden layer, (n, 64) and at least 0."""
        hidden = _flat(x)
        layers = zip(self._network.coefs_[:-1], self._network.intercepts_[:-1], strict=True)
        for weights, bias in layers:
            hidden = np.maximum(hidden @ weights + bias, 0.0)
        return hidden

    def accuracy(self, x: np.ndarray, label: np.ndarray) -> float:
        """Returns the fraction of images that are classified as their labels."""
        return float(np.mean(self._network.predict(_flat(x)) == label))


def _flat(x: np.ndarray) -> np.ndarray:
    """Returns images as vectors (n, h w c), float64."""
    return np.asarray(x, np.float64).reshape(len(x), -1)
