import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from distill_jax.metrics.sliced import by_class, sliced_wasserstein

RNG = np.random.default_rng(0)


def test_the_distance_of_a_set_to_itself_is_zero():
    x = RNG.normal(size=(50, 3))
    assert sliced_wasserstein(x, x[::-1]) == 0


@pytest.mark.parametrize(("n", "m"), [(7, 7), (2, 6), (4, 6), (5, 3)])
def test_on_a_line_the_distance_is_that_of_the_cheapest_plan(n, m):
    a, b = RNG.normal(size=(n, 1)), RNG.normal(size=(m, 1))
    # A plan between n and m points is one between lcm(n, m) equal shares of each.
    shares = np.lcm(n, m)
    costs = (np.repeat(a, shares // n)[:, None] - np.repeat(b, shares // m)) ** 2
    best = costs[linear_sum_assignment(costs)].mean()
    # On a line the direction is 1 or -1.
    np.testing.assert_allclose(sliced_wasserstein(a, b) ** 2, best, rtol=1e-12)


def test_the_distance_to_a_shifted_set_is_the_shift_over_the_root_of_the_dimension():
    x, shift = RNG.normal(size=(40, 2)), np.asarray([0.3, 0.4])
    # The mean of cos^2 over directions is 1 / 2; of 20,000 directions, to 0.5 %.
    distance = sliced_wasserstein(x, x + shift, num_projections=20_000)
    np.testing.assert_allclose(distance, 0.5 / np.sqrt(2), rtol=0.01)


def test_the_distance_is_symmetric_and_fixed_by_the_seed():
    a, b = RNG.normal(size=(30, 3)), RNG.normal(size=(45, 3))
    distance = sliced_wasserstein(a, b, seed=1)
    assert sliced_wasserstein(b, a, seed=1) == pytest.approx(distance, rel=1e-12)
    assert sliced_wasserstein(a, b, seed=1) == distance != sliced_wasserstein(a, b, seed=2)


def test_classes_are_compared_one_by_one():
    a, b = RNG.normal(size=(30, 2)), RNG.normal(size=(20, 2))
    a_label, b_label = np.arange(30) % 3, 1 + np.arange(20) % 2
    found = by_class(a, a_label, b, b_label)
    assert found == {c: sliced_wasserstein(a[a_label == c], b[b_label == c]) for c in (1, 2)}
    assert found[1] != found[2]
