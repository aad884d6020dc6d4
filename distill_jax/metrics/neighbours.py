"""Precision, recall, density and coverage, by balls around the features; on the device."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np


def neighbour_scores(
    real: np.ndarray, fake: np.ndarray, k: int = 3, block: int = 2048
) -> dict[str, float]:
    """Returns "precision", "recall", "density" and "coverage".

    A ball around a feature reaches to its k-th nearest neighbour in its own set. Kynkaanniemi et
    al. (2019, arXiv:1904.06991): precision is the fraction of generated features in a real ball,
    recall that of real features in a generated ball. Naeem et al. (2020, arXiv:2002.09797):
    density is the mean number of real balls around a generated feature, over k; coverage is the
    fraction of real balls with a generated feature inside. All depend on the numbers of features.

    Args:
      real: features (n, d), n > k.
      fake: features (m, d), m > k.
      k: number of the neighbour.
      block: number of rows of a matrix of distances in memory.

    Raises:
      ValueError: if a set has k features or fewer.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(
            f"neighbours of order {k} need more than {k} images; there are {len(real)} real and "
            f"{len(fake)} generated ones"
        )
    centre = np.mean(real, axis=0, dtype=np.float64)  # Smaller numbers lose less in float32.
    a, b = (jnp.asarray(np.asarray(x, np.float64) - centre, jnp.float32) for x in (real, fake))
    real_radii, fake_radii = (_radii(x, k, block) for x in (a, b))
    balls, covered = [], []
    for rows in _blocks(b, block):
        inside = _squares(rows, a) <= real_radii
        balls.append(np.asarray(inside.sum(1)))
    recalled = []
    for i, rows in enumerate(_blocks(a, block)):
        squares = _squares(rows, b)
        recalled.append(np.asarray((squares <= fake_radii).any(1)))
        radii = real_radii[i * block : i * block + len(rows)]
        covered.append(np.asarray(squares.min(1) <= radii))
    counts = np.concatenate(balls)
    return {
        "precision": float(np.mean(counts > 0)),
        "recall": float(np.mean(np.concatenate(recalled))),
        "density": float(np.mean(counts) / k),
        "coverage": float(np.mean(np.concatenate(covered))),
    }


def _blocks(x: jax.Array, size: int) -> Iterator[jax.Array]:
    return (x[i : i + size] for i in range(0, len(x), size))


def _radii(x: jax.Array, k: int, block: int) -> jax.Array:
    """Returns the squared distances to the k-th nearest other row."""
    found = [-jax.lax.top_k(-_squares(rows, x), k + 1)[0][:, k] for rows in _blocks(x, block)]
    return jnp.concatenate(found)


@jax.jit
def _squares(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the squared distances (n, m) of rows (n, d) and (m, d)."""
    product = jnp.matmul(a, b.T, precision="highest")
    return jnp.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * product, 0)
