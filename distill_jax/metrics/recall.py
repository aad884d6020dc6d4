"""Recall of samples, by nearest neighbours in a space of features."""

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
    neighbours = NearestNeighbors(n_neighbors=min(k, len(fake) - 1)).fit(fake)
    radii = neighbours.kneighbors()[0][:, -1]  # Without an argument no point is its own neighbour.
    parts = np.array_split(real, -(-len(real) * len(fake) // CHUNK))
    covered = [(pairwise_distances(part, fake) <= radii).any(axis=1) for part in parts]
    return float(np.mean(np.concatenate(covered)))
