import numpy as np
import pytest

from distill_jax.metrics.diversity import MOST, diversity

RNG = np.random.default_rng(0)


def test_it_is_the_mean_over_conditions_of_the_mean_distance_of_pairs():
    # A triangle with sides 3, 4 and 5, and two points that are 10 apart, of which one is far off.
    features = np.asarray([[0.0, 0], [100, 0], [3, 0], [0, 4], [100, 10]])
    label = np.asarray([7, 2, 7, 7, 2])
    assert diversity(features, label) == pytest.approx((4 + 10) / 2)
    prompts = np.asarray(["a", "b", "a", "a", "b"], object)
    assert diversity(features, prompts) == pytest.approx(7)


def test_a_condition_with_one_sample_does_not_count():
    features = np.asarray([[0.0], [2.0], [50.0]])
    assert diversity(features, np.asarray([0, 0, 1])) == pytest.approx(2)
    assert diversity(features, np.arange(3)) is None
    assert diversity(features[:1], None) is None


def test_without_conditions_all_samples_are_compared():
    assert diversity(np.asarray([[0.0], [2.0], [50.0]]), None) == pytest.approx((2 + 50 + 48) / 3)


def test_equal_samples_have_none_wherever_they_are():
    features = np.repeat(1000 * RNG.normal(size=(2, 16)), 50, axis=0)
    assert diversity(features, np.repeat([0, 1], 50)) == pytest.approx(0, abs=1e-6)


def test_it_scales_with_the_distances_and_is_not_biased_by_the_number_of_samples():
    features, label = RNG.normal(size=(400, 8)), np.arange(400) % 4
    found = diversity(features, label)
    assert diversity(3 * features + 5, label) == pytest.approx(3 * found)
    # Two normal vectors in 8 dimensions are 2 Gamma(9/2) / Gamma(4) = 3.877 apart on average.
    assert found == pytest.approx(3.877, rel=0.03)
    assert diversity(features[:40], label[:40]) == pytest.approx(3.877, rel=0.1)


def test_of_a_condition_with_many_samples_the_first_are_compared():
    features = RNG.normal(size=(MOST + 50, 4))
    assert diversity(features, None) == diversity(features[:MOST], None)
