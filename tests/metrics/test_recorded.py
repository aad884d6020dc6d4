"""Metrics and resizes equal the values of independent implementations, see recorded/make.py."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from distill_jax.metrics.frechet import Moments, Target, frechet_distance, moments
from distill_jax.metrics.kernel import cmmd, kid
from distill_jax.metrics.neighbours import neighbour_scores
from distill_jax.metrics.resizing import RESIZES, central_square, matrix, resize
from distill_jax.metrics.score import inception_score
from distill_jax.metrics.sliced import mind
from tests.metrics.recorded import image

RECORDED = np.load(pathlib.Path(__file__).parent / "recorded" / "recorded.npz")
REAL, FAKE = RECORDED["real"], RECORDED["fake"]
RNG = np.random.default_rng(1)


def test_frechet_distance_is_scipys():
    found = frechet_distance(moments(FAKE), moments(REAL))
    assert found == pytest.approx(float(RECORDED["fid"]), rel=1e-6)
    assert Target(moments(REAL)).distance(FAKE) == pytest.approx(found, rel=1e-9)


def test_the_distance_of_fewer_features_than_their_size_is_the_same_number():
    real, fake = RNG.normal(size=(300, 40)), RNG.normal(size=(25, 40))
    expected = frechet_distance(moments(fake), moments(real))
    assert Target(moments(real)).distance(fake) == pytest.approx(expected, rel=1e-6)


def test_kid_is_that_of_torch_fidelity():
    mean, error = kid(REAL, FAKE, subsets=20, size=100)
    assert mean == pytest.approx(float(RECORDED["kid"]), rel=1e-6)
    assert error == pytest.approx(float(RECORDED["kid_std"]) / np.sqrt(20), rel=1e-6)


def test_inception_score_is_that_of_torch_fidelity():
    mean, error = inception_score(RECORDED["class_logits"], splits=5)
    assert mean == pytest.approx(float(RECORDED["isc"]), rel=1e-6)
    assert error == pytest.approx(float(RECORDED["isc_std"]) / np.sqrt(5), rel=1e-6)


@pytest.mark.parametrize("block", [2048, 64])
def test_neighbour_scores_are_those_of_torch_fidelity_and_prdc(block):
    found = neighbour_scores(REAL, FAKE, k=3, block=block)
    assert found == {name: pytest.approx(float(RECORDED[name]), rel=1e-6) for name in found}
    assert sorted(found) == ["coverage", "density", "precision", "recall"]


def test_mind_with_the_same_directions_is_that_of_torch_fidelity():
    found, _ = mind(REAL[:200], FAKE, RECORDED["directions"])
    assert found == pytest.approx(float(RECORDED["mind"]), rel=1e-6)


SIZES = [(32, 299), (300, 224), (37, 64)]


@pytest.mark.parametrize("method", ["tf1", "bilinear", "bicubic"])
@pytest.mark.parametrize(("size", "side"), SIZES)
def test_resizes_are_exact_to_a_thousandth_of_a_grey_level(method, size, side):
    found = np.asarray(resize(jnp.asarray(image(size))[None], method, side))[0]
    lines = np.stack([found[side // 3], found[:, side // 5]])
    np.testing.assert_allclose(lines, RECORDED[f"{method}_{size}"], atol=1e-3)


@pytest.mark.parametrize(("size", "side"), SIZES)
def test_bicubic8_is_the_resize_of_pillow_for_bytes(size, side):
    found = np.asarray(resize(jnp.asarray(image(size))[None], "bicubic8", side))[0]
    resized = Image.fromarray(image(size)).resize((side, side), Image.Resampling.BICUBIC)
    apart = np.abs(found - np.asarray(resized))
    assert apart.max() <= 2
    assert (apart > 0).mean() < 1e-3


def test_the_central_square_is_that_of_cmmd():
    x = jnp.arange(2 * 5 * 8).reshape(2, 5, 8, 1)
    np.testing.assert_array_equal(central_square(x), x[:, :, 1:6])
    np.testing.assert_array_equal(central_square(x[:, :, :2]), x[:, 1:3, :2])


@pytest.mark.parametrize("method", RESIZES)
def test_a_resize_to_the_same_size_changes_nothing(method):
    np.testing.assert_array_equal(matrix(method, 20, 20), np.eye(20))


def test_mind_of_normal_features_is_three_times_their_squared_difference():
    # W2 of two normal projections is the difference of their means, |u.m|, and E |u.m|^2 = |m|^2/d.
    mean = np.linspace(0, 1, 8)
    a, b = RNG.normal(size=(2, 20_000, 8))
    found, error = mind(a, b + mean)
    assert found == pytest.approx(3 * (mean**2).sum(), rel=0.15)
    assert 0 < error < found / 10


def test_mind_subsamples_the_larger_set():
    assert mind(REAL, FAKE)[0] == pytest.approx(mind(FAKE, REAL)[0], rel=0.2)


def test_cmmd_of_equal_features_is_zero_and_grows_with_their_distance():
    unit = REAL / np.linalg.norm(REAL, axis=1, keepdims=True)
    near, far = (cmmd(unit, unit + step) for step in (0.1, 0.2))
    assert cmmd(unit, unit) == pytest.approx(0, abs=1e-9)
    assert 0 < near < far
    assert cmmd(unit, unit + 0.1, block=7) == pytest.approx(near, rel=1e-9)


def test_the_extrapolated_distance_of_a_distribution_to_itself_is_nearly_zero():
    target, fake = Target(Moments(np.zeros(20), np.eye(20))), RNG.normal(size=(4000, 20))
    assert abs(target.distance_at_infinity(fake)) < target.distance(fake) / 2


def test_too_few_features_are_refused():
    with pytest.raises(ValueError, match="subsets of 1000 images; there are 240 real and 200"):
        kid(REAL, FAKE)
    with pytest.raises(ValueError, match="more than 3 images; there are 3 real"):
        neighbour_scores(REAL[:3], FAKE)
