"""Features and labels from a small classifier trained on the dataset itself."""

import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from threadpoolctl import threadpool_limits

WIDTHS = (256, 64)
COPIES = 4  # of every image, with noise of NOISE: small blemishes should not confuse it.
NOISE = 0.25


class Classifier:
    """A two-layer perceptron on flattened images; its second hidden layer gives the features.

    A measure for one dataset: a Frechet distance in its features is `FD-<dataset>`, comparable
    within the same protocol and with nothing else, and never FID.

    Args:
      x: training images (n, h, w, c) in [-1, 1].
      label: their classes (n,).
      seed: of its initialisation, order and noise; the protocol's is 0.
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
        """The activations of the second hidden layer, (n, 64) and at least 0."""
        hidden = _flat(x)
        layers = zip(self._network.coefs_[:-1], self._network.intercepts_[:-1], strict=True)
        for weights, bias in layers:
            hidden = np.maximum(hidden @ weights + bias, 0.0)
        return hidden

    def accuracy(self, x: np.ndarray, label: np.ndarray) -> float:
        """The fraction of images that it puts into the class they are meant to show."""
        return float(np.mean(self._network.predict(_flat(x)) == label))


def _flat(x: np.ndarray) -> np.ndarray:
    """Images as vectors (n, h w c), float64."""
    return np.asarray(x, np.float64).reshape(len(x), -1)
