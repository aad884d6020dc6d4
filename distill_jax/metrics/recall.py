"""Recall of samples, by nearest neighbours in a feature space."""

import numpy as np
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

CHUNK = 2**24  # Largest number of distances in memory.


def recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> float:
    """Returns the fraction of real points in a ball around some fake point, the covered fraction.

    The radius of a fake point's ball is the distance to its k-th nearest fake neighbour:
    Kynkaanniemi et al. (2019, arXiv:1904.06991), section 2. Recall depends on both numbers of
    points, so compare it only within one protocol. Both sets are (n, d), with at least two points.
    """
    neighbours = NearestNeighbors(n_neighbors=min(k, len(fake) - 1)).fit(fake)
    radii = neighbours.kneighbors()[0][:, -1]  # Without an argument no point is its own neighbour.
    parts = np.array_split(real, -(-len(real) * len(fake) // CHUNK))
    covered = [(pairwise_distances(part, fake) <= radii).any(axis=1) for part in parts]
    return float(np.mean(np.concatenate(covered)))
