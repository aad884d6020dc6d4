import numpy as np
import pytest

from distill_jax.metrics.recall import CHUNK, recall

RNG = np.random.default_rng(0)


def covered(points, centres, k):
    """Returns by definition, point by point, whether some centre's ball contains the point."""
    found = []
    for point in points:
        inside = []
        for i, centre in enumerate(centres):
            others = np.linalg.norm(np.delete(centres, i, axis=0) - centre, axis=1)
            inside.append(np.linalg.norm(point - centre) <= np.sort(others)[k - 1])
        found.append(any(inside))
    return np.mean(found)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dimension", [2, 20])  # In few dimensions a tree finds the neighbours.
def test_recall_is_the_fraction_of_points_within_balls(k, dimension):
    real, fake = RNG.normal(size=(40, dimension)), 0.8 * RNG.normal(size=(30, dimension)) + 0.2
    assert recall(real, fake, k) == covered(real, fake, k)
    assert 0 < recall(real, fake, k) < 1


def test_samples_of_one_mode_of_two_recall_half():
    modes = RNG.normal(size=(2, 400, 2)) + np.asarray([[[0.0, 0.0]], [[100.0, 0.0]]])
    real, fake = modes.reshape(-1, 2), modes[0] + 0.01
    assert recall(real, fake) == pytest.approx(0.5, abs=0.02)


def test_samples_far_from_data_recall_nothing():
    real = RNG.normal(size=(100, 2))
    assert recall(real, real + 100) == 0


def test_more_points_than_fit_at_once_are_counted_in_parts():
    # The third neighbour of the first and of the last whole number is 3 away.
    fake = np.arange(3000.0)[:, None]
    real = np.linspace(-10, 3009, 1 + CHUNK // 2500)[:, None]
    assert len(real) * len(fake) > CHUNK
    assert recall(real, fake) == np.mean((real >= -3) & (real <= 3002)) < 1


def test_two_points_have_one_neighbour_each():
    fake = np.asarray([[0.0], [1.0]])
    assert recall(np.asarray([[-1.0], [2.0], [2.1]]), fake) == 2 / 3
