import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.noise_levels import time_of
from distill_jax.diffusion.prediction import PARAMETERIZATIONS, Prediction, eps_from_x, v_from
from distill_jax.diffusion.samplers import renoise
from distill_jax.diffusion.schedule import Cosine, Karras, LinearBeta, RectifiedFlow, add_noise
from distill_jax.methods import matching
from tests.toys import constant_denoiser, gaussian_denoiser

SCHEDULES = (Cosine(), LinearBeta(), Karras(), RectifiedFlow())
X = jax.random.normal(jax.random.key(0), (4, 3))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_a_difference_is_the_same_in_x_eps_v_and_flow(schedule, x64):
    t = jnp.asarray([0.03, 0.3, 0.6, 0.9])
    z, x_a, x_b = (jax.random.normal(jax.random.key(k), (4, 3)) for k in range(3))
    a, b = (Prediction(x, eps_from_x(z, x, schedule, t)) for x in (x_a, x_b))
    np.testing.assert_allclose(matching.x_difference(a, b, schedule, t), x_a - x_b, rtol=1e-9)

    heads = {
        "x": lambda p: p.x,
        "eps": lambda p: p.eps,
        "flow": lambda p: p.eps - p.x,
        "v": lambda p: v_from(p, schedule, t),
    }
    for name, output in heads.items():
        read = [PARAMETERIZATIONS[name].predict(output(p), z, schedule, t) for p in (a, b)]
        got = matching.x_difference(*read, schedule, t)
        np.testing.assert_allclose(got, x_a - x_b, rtol=1e-6, err_msg=name)


def test_a_difference_keeps_its_digits_at_the_smallest_level():
    schedule, t = Karras(), jnp.zeros(4)  # Level 0.002.
    z, output = X, 0.1 * X[::-1]
    other = output + 1e-2
    head = PARAMETERIZATIONS["edm"].predict
    a, b = head(output, z, schedule, t), head(other, z, schedule, t)
    c_out = 0.002 * 0.5 / np.sqrt(0.002**2 + 0.5**2)
    exact = c_out * (np.asarray(output, np.float64) - np.asarray(other, np.float64))
    np.testing.assert_allclose(matching.x_difference(a, b, schedule, t), exact, rtol=1e-4)
    assert np.abs((a.x - b.x) / exact - 1).max() > 1e-3


def test_the_truth_differs_from_a_prediction_by_the_residual(x64):
    schedule, t = Cosine(), jnp.asarray([0.03, 0.3, 0.6, 0.9])
    x, eps = X, X[::-1]
    real = gaussian_denoiser(schedule, 0.5)(add_noise(schedule, x, eps, t), t, {})
    got = matching.x_difference(real, Prediction(x, eps), schedule, t)
    np.testing.assert_allclose(got, real.x - x, rtol=1e-6)


def test_the_normaliser_has_a_floor_and_no_gradient():
    def total(a, residual):
        return matching.normalised(a, residual).sum()

    of_a, of_residual = jax.grad(total, (0, 1))(X, X)
    norm = np.abs(X).mean(1, keepdims=True)
    np.testing.assert_allclose(of_a, np.broadcast_to(1 / norm, X.shape), rtol=1e-6)
    np.testing.assert_array_equal(of_residual, 0)
    np.testing.assert_allclose(matching.normalised(X, 0 * X), X / 1e-5, rtol=1e-6)


def test_the_score_gap_is_the_mean_gap_per_residual():
    residual = jnp.asarray([[1.0, -3.0], [4.0, 4.0]])
    gap = jnp.asarray([[1.0, -1.0], [0.0, 2.0]])
    np.testing.assert_allclose(matching.score_gap(gap, residual), (0.5 + 0.25) / 2)
    assert matching.score_gap(0 * gap, 0 * residual) == 0


def test_the_dmd_gradient_is_the_normalised_difference_per_element(x64):
    x, real, fake = (jax.random.normal(jax.random.key(k), (4, 3, 2)) for k in range(3))
    gradient, of_real, of_fake = jax.grad(matching.dmd_loss, (0, 1, 2))(x, real, fake)
    norm = np.abs(x - real).mean((1, 2), keepdims=True)
    np.testing.assert_allclose(gradient, (fake - real) / norm / x.size, rtol=1e-9)
    np.testing.assert_array_equal(of_real, 0)
    np.testing.assert_array_equal(of_fake, 0)


def test_the_dmd_gradient_without_normaliser_is_that_of_the_kl_of_gaussians(x64):
    # Data N(-.3, 1.1^2), generator N(.7, .4^2), level 1; KL = that of the noisy ones.
    schedule, t, mean, std = Karras(), time_of(Karras(), 1.0), 0.7, 0.4
    nodes, weights = np.polynomial.hermite.hermgauss(12)
    n, eps = (np.sqrt(2) * a.reshape(-1, 1) for a in np.meshgrid(nodes, nodes))
    weight = np.outer(weights, weights).reshape(-1, 1) / np.pi
    x, t = jnp.asarray(mean + std * n), jnp.full(len(n), t)
    z = add_noise(schedule, x, jnp.asarray(eps), t)
    real = gaussian_denoiser(schedule, 1.1, -0.3)(z, t, {}).x
    fake = gaussian_denoiser(schedule, std, mean)(z, t, {}).x
    gradient = jax.grad(matching.dmd_loss)(x, real, fake) * x.size * np.abs(x - real)
    got = [(weight * gradient).sum(), (weight * gradient * n).sum()]
    np.testing.assert_allclose(got, [0.452489, -0.163832], atol=1e-6)


def test_the_discriminator_and_the_student_pull_logits_apart_and_together():
    zero = jnp.zeros(4)
    np.testing.assert_allclose(matching.discriminator_loss(zero, zero), 2 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(matching.generator_gan_loss(zero), np.log(2), rtol=1e-6)
    of_real, of_fake = jax.grad(matching.discriminator_loss, (0, 1))(zero, zero)
    np.testing.assert_allclose(
        [of_real, of_fake, jax.grad(matching.generator_gan_loss)(zero)],
        np.asarray([[-1], [1], [-1]]) * np.full((3, 4), 0.125),
    )


def test_a_generator_is_called_on_noise_of_the_level_of_its_time():
    seen = []

    def predict(z, t, cond, key=None):
        seen.append((z, t, key))
        return Prediction(z, z)

    key, schedule = jax.random.key(1), Karras()
    t = time_of(schedule, 2.5)
    matching.generate(Denoiser(schedule, predict), X, t, {}, key)
    z, times, given = seen[0]
    np.testing.assert_allclose(z, 2.5 * X, rtol=1e-5)
    np.testing.assert_array_equal(times, jnp.full(4, t))
    assert given is key


def test_a_rollout_stops_at_the_input_of_its_step_and_at_the_last_x():
    schedule, times = Cosine(), jnp.asarray([1.0, 0.7, 0.4, 0.0])
    student = constant_denoiser(schedule, 0.25)
    eps = jax.random.normal(jax.random.key(2), (20000, 1))
    key = jax.random.key(0)
    run = jax.jit(lambda k: renoise(key, student, eps, {}, times[:3], stop=k))
    for k in range(3):
        z = run(k)
        alpha, sigma = schedule.alpha(times[k]), schedule.sigma(times[k])
        np.testing.assert_allclose(z.mean(), 0.25 * alpha, atol=0.03)
        np.testing.assert_allclose(z.std(), sigma, rtol=0.03)
        # Noise of its own, not that of the start.
        assert abs(np.corrcoef(z[:, 0], eps[:, 0])[0, 1]) < 0.03 or k == 0
    np.testing.assert_array_equal(run(3), jnp.full_like(eps, 0.25))
    np.testing.assert_allclose(renoise(key, student, eps, {}, times[:3], stop=0), run(0))
    np.testing.assert_array_equal(renoise(key, student, eps, {}, times[:3]), run(3))


def test_no_gradient_comes_out_of_a_rollout():
    def total(mean, stop):
        student = gaussian_denoiser(Cosine(), 0.5, mean)
        return renoise(jax.random.key(0), student, X, {}, (1.0, 0.5), stop=stop).sum()

    assert jax.jit(jax.grad(total))(0.3, 1) == 0
