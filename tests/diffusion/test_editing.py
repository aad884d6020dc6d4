import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.editing import inpaint, sdedit
from distill_jax.diffusion.samplers import ddim
from distill_jax.diffusion.schedule import Cosine, Karras, RectifiedFlow
from tests.toys import constant_denoiser, gaussian_denoiser

X = jnp.linspace(-1, 1, 12).reshape(3, 4)
EPS = jax.random.normal(jax.random.key(0), X.shape)
MASK = jnp.asarray([1.0, 0.0, 0.0, 1.0])


@pytest.mark.parametrize("schedule", [RectifiedFlow(), Karras()], ids=repr)
def test_starting_at_one_is_sampling(schedule):
    denoiser = gaussian_denoiser(schedule, 0.5)
    # At t = 1 nothing is left of x in a flow, and 1/80 of it under Karras.
    found = sdedit(denoiser, X, EPS, {}, 4, 4)
    np.testing.assert_allclose(found, ddim(denoiser, EPS, {}, 4), atol=0.01)


def test_an_earlier_start_keeps_more_of_the_image():
    edit = jax.jit(lambda start: sdedit(gaussian_denoiser(Cosine(), 0.5), X, EPS, {}, 8, start))
    distances = [float(jnp.abs(edit(start) - X).mean()) for start in (1, 3, 6, 8)]
    assert distances == sorted(distances)
    assert distances[0] < 0.2 < distances[-1]
    assert edit._cache_size() == 1


def test_the_denoiser_is_called_from_the_start_on_and_never_before():
    times = []

    def predict(z, t, cond, key=None):
        jax.debug.callback(lambda t: times.append(float(t[0])), t)
        return constant_denoiser(Cosine(), 0.25).predict(z, t, cond)

    x = sdedit(Denoiser(Cosine(), predict), X, EPS, {}, 4, 3)
    np.testing.assert_allclose(x, np.full(X.shape, 0.25), atol=1e-6)
    assert times == [0.75, 0.5, 0.25]


@pytest.mark.parametrize("num_steps", [1, 4])
def test_the_known_part_is_kept_and_the_rest_is_the_samplers(num_steps):
    x = inpaint(constant_denoiser(Cosine(), 0.25), X, MASK, EPS, {}, num_steps)
    expected = np.where(np.asarray(MASK) > 0, 0.25, X)
    np.testing.assert_allclose(x, expected, atol=1e-6)


def test_what_lies_under_the_mask_makes_no_difference():
    denoiser = gaussian_denoiser(Cosine(), 0.5)
    hidden = jnp.where(MASK > 0, jnp.nan, X)
    np.testing.assert_array_equal(
        inpaint(denoiser, X, MASK, EPS, {}, 3), inpaint(denoiser, hidden, MASK, EPS, {}, 3)
    )


def test_a_mask_of_ones_is_sampling(x64):
    denoiser, eps = gaussian_denoiser(Cosine(), 0.5), EPS.astype(jnp.float64)
    x = inpaint(denoiser, X.astype(jnp.float64), jnp.ones(4), eps, {}, 3)
    np.testing.assert_allclose(x, ddim(denoiser, eps, {}, 3), atol=1e-12)


def test_the_denoiser_sees_the_known_part_at_the_noise_of_its_time():
    schedule, seen = Cosine(), []

    def predict(z, t, cond, key=None):
        jax.debug.callback(lambda z, t: seen.append((np.asarray(z), t)), z, t)
        return constant_denoiser(schedule, 0.0).predict(z, t, cond)

    inpaint(Denoiser(schedule, predict), X, MASK, EPS, {}, 3)
    assert len(seen) == 3
    for z, t in seen:
        known = schedule.alpha(t)[:, None] * X + schedule.sigma(t)[:, None] * EPS
        np.testing.assert_allclose(z[:, 1:3], known[:, 1:3], atol=1e-6)
