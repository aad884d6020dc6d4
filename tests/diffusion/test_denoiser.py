import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser, clipped, guided
from distill_jax.diffusion.prediction import Prediction, eps_from_x
from distill_jax.diffusion.schedule import Cosine, add_noise, expand
from tests.toys import filled, tiny_network

LABEL = {"label": jnp.asarray([0, 1, 2, 0])}
NULL = {"label": jnp.full((4,), 3)}
Z = jax.random.normal(jax.random.key(0), (4, 4, 4, 1))
T = jnp.asarray([0.1, 0.4, 0.7, 1.0])


def network():
    network_spec = tiny_network()
    return network_spec(filled(network_spec.network.init(jax.random.key(0), Z, T, LABEL)))


def test_guidance_extrapolates_from_the_null_prediction_by_w_per_example():
    denoiser, w = network(), jnp.asarray([0.0, 0.5, 1.0, 4.0])
    cond, null = denoiser(Z, T, LABEL), denoiser(Z, T, NULL)
    result = guided(denoiser, w, NULL)(Z, T, LABEL)
    for got, c, u in zip(result, cond, null, strict=True):
        expected = (1 + expand(w, c)) * c - expand(w, c) * u
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert not np.allclose(result.x[3], cond.x[3], atol=1e-2)


def test_guidance_with_w_zero_is_the_identity():
    denoiser = network()
    for got, expected in zip(
        guided(denoiser, 0.0, NULL)(Z, T, LABEL), denoiser(Z, T, LABEL), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_guided_predictions_recombine_to_z():
    prediction = guided(network(), 3.0, NULL)(Z, T, LABEL)
    np.testing.assert_allclose(add_noise(Cosine(), *prediction, T), Z, atol=1e-4)


def test_guidance_calls_the_network_once_on_twice_the_batch():
    sizes = []

    def predict(z, t, cond, key=None):
        sizes.append((z.shape, t.shape, cond["label"].shape))
        return Prediction(z, z)

    guided(Denoiser(Cosine(), predict), 1.0, NULL)(Z, T, LABEL)
    assert sizes == [((8, 4, 4, 1), (8,), (8,))]


def test_a_denoiser_that_takes_w_refuses_to_be_guided():
    with pytest.raises(ValueError, match="guidance is already in its weights"):
        guided(network(), 1.0, NULL)(Z, T, {**LABEL, "w": jnp.ones(4)})


def test_clipped_keeps_x_in_range_and_recombines_to_z(x64):
    def predict(z, t, cond, key=None):
        x = 3 * z
        return Prediction(x, eps_from_x(z, x, Cosine(), t))

    z = Z.astype(jnp.float64)
    t = jnp.asarray([0.0, 0.4, 0.7, 1.0])
    prediction = clipped(Denoiser(Cosine(), predict))(z, t, {})
    np.testing.assert_array_equal(prediction.x, jnp.clip(3 * z, -1, 1))
    np.testing.assert_allclose(add_noise(Cosine(), *prediction, t), z, atol=1e-10)
