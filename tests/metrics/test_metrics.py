import numpy as np
import pytest
import scipy.linalg

from distill_jax.data import DATASETS
from distill_jax.metrics.features import Classifier
from distill_jax.metrics.frechet import Moments, frechet_distance, moments

RNG = np.random.default_rng(0)


def gaussian(dimension=5):
    root = RNG.normal(size=(dimension, dimension))
    return Moments(RNG.normal(size=dimension), root @ root.T)


def test_distance_of_a_set_to_itself_is_zero():
    a = gaussian()
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)


def test_distance_is_symmetric():
    a, b = gaussian(), gaussian()
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-9)


def test_distance_is_the_formula_with_the_matrix_square_root():
    a, b = gaussian(), gaussian()
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = np.sum((a.mean - b.mean) ** 2)
    expected += np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)


def test_distance_of_commuting_gaussians_is_that_of_means_and_standard_deviations():
    a = Moments(np.asarray([1.0, 2.0]), np.diag([4.0, 9.0]))
    b = Moments(np.asarray([0.0, 2.0]), np.diag([1.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(1 + (2 - 1) ** 2 + (3 - 1) ** 2)


def test_distance_exists_for_singular_covariances():
    a = Moments(np.zeros(3), np.diag([1.0, 0.0, 0.0]))
    b = Moments(np.zeros(3), np.diag([0.0, 1.0, 0.0]))
    assert frechet_distance(a, b) == pytest.approx(2)


def test_moments_are_those_of_numpy():
    x = RNG.normal(size=(50, 3))
    np.testing.assert_allclose(moments(x).mean, x.mean(axis=0))
    np.testing.assert_allclose(moments(x).covariance, np.cov(x.T))
    assert moments(x[:, :1]).covariance.shape == (1, 1)


@pytest.fixture(scope="module")
def digits():
    return DATASETS["digits"]()


@pytest.fixture(scope="module")
def classifier(digits):
    return Classifier(digits.train.x, digits.train.label)


def test_the_classifier_is_right_about_unseen_digits(digits, classifier):
    assert classifier.accuracy(digits.test.x, digits.test.label) > 0.97


def test_the_features_are_those_that_the_classifier_uses(digits, classifier):
    features = classifier.features(digits.test.x)
    network = classifier._network
    scores = features @ network.coefs_[-1] + network.intercepts_[-1]
    expected = network.predict(digits.test.x.reshape(360, -1))
    np.testing.assert_array_equal(network.classes_[scores.argmax(axis=1)], expected)


def test_the_distance_grows_with_damage_to_the_images(digits, classifier):
    real = moments(classifier.features(digits.train.x))
    distances = []
    for noise in (0.0, 0.3, 0.6, 1.0):
        damaged = digits.train.x + noise * RNG.normal(size=digits.train.x.shape)
        distances.append(frechet_distance(real, moments(classifier.features(damaged))))
    assert distances == sorted(distances)
    assert distances[-1] > 10 * distances[1]
