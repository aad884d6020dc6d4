"""Precision and recall of samples, by nearest neighbours in a space of features."""

import numpy as np
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

CHUNK = 2**24  # Distances held at once.


def recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> float:
    """The fraction of real points within the balls around the fake ones: what samples cover.

    The ball around a point reaches to its k-th neighbour among its own kind. Kynkaanniemi et al.
    (2019, arXiv:1904.06991), section 2. It depends on both numbers of points, so compare it within
    one protocol alone. Both are of shape (n, d), with at least two points.
    """
    return _covered(real, fake, k)


def precision(real: np.ndarray, fake: np.ndarray, k: int = 3) -> float:
    """The fraction of fake points within the balls around the real ones; see recall."""
    return _covered(fake, real, k)


def _covered(points: np.ndarray, centres: np.ndarray, k: int) -> float:
    neighbours = NearestNeighbors(n_neighbors=min(k, len(centres) - 1)).fit(centres)
    radii = neighbours.kneighbors()[0][:, -1]  # Without an argument no point is its own neighbour.
    parts = np.array_split(points, -(-len(points) * len(centres) // CHUNK))
    return float(np.mean(np.concatenate([_within(part, centres, radii) for part in parts])))


def _within(points: np.ndarray, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    return (pairwise_distances(points, centres) <= radii).any(axis=1)
