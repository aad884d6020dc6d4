import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.analytic import Mixture, ode_map, ring
from distill_jax.diffusion.denoiser import guided
from distill_jax.diffusion.samplers import ddim
from distill_jax.diffusion.schedule import Cosine, Karras, RectifiedFlow
from distill_jax.metrics.sliced import by_class
from tests.toys import gaussian_denoiser

SCHEDULES = [Cosine(), Karras(), RectifiedFlow(), RectifiedFlow(shift=3.0)]
# Three classes of one, two and three overlapping components, none of them symmetric.
TOY = Mixture(
    means=((0.7, -0.2), (-0.5, 0.4), (0.1, 0.9), (-0.8, -0.6), (0.3, 0.2), (0.2, -0.9)),
    std=0.3,
    labels=(0, 1, 1, 2, 2, 2),
)
MEANS, LABELS = np.asarray(TOY.means), np.asarray(TOY.labels)
EVERY = np.arange(4)  # 3 is the null label.


@functools.partial(jax.jit, static_argnums=0)
def exact(schedule, z, t, label):
    """Returns x and eps of the toy, compiled once for a schedule."""
    return TOY.denoiser(schedule)(z, t, {"label": label})


def levels(schedule, t):
    t = jnp.asarray([t])
    return float(schedule.alpha(t)[0]), float(schedule.sigma(t)[0])


def noisy(alpha, sigma):
    """Returns four points of a wide Gaussian, noised to these levels, in float64."""
    x, eps = np.random.default_rng(1).normal(size=(2, 4, 2))
    return 0.6 * alpha * x + sigma * eps


def members(label):
    return (label if label < 3 else LABELS) == LABELS


def log_density(z, alpha, sigma, label):
    """Returns log q_t(z | label) of one point from the definition, up to a constant."""
    squares = np.sum((z - alpha * MEANS[members(label)]) ** 2, axis=-1)
    return np.logaddexp.reduce(-squares / (2 * ((alpha * TOY.std) ** 2 + sigma**2)))


def slope(function, z, step):
    """Returns the gradient of a function of z (2,) by differences."""
    shifts = step * np.eye(2)
    return np.stack([(function(z + s) - function(z - s)) / (2 * step) for s in shifts], axis=-1)


def integrated(z, alpha, sigma, label):
    """Returns E[x | z] of one point by a sum over a fine grid of x: prior times likelihood."""
    line = np.linspace(-3, 3, 401)
    x = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    squares = [np.sum((x - mean) ** 2, axis=-1) for mean in MEANS[members(label)]]
    prior = np.exp(-np.stack(squares) / (2 * TOY.std**2)).sum(axis=0)
    distance = np.sum((z - alpha * x) ** 2, axis=-1) / (2 * sigma**2)
    weight = prior * np.exp(distance.min() - distance)
    return weight @ x / weight.sum()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_image_and_noise_are_those_of_the_definition(x64, schedule):
    for t in (0.15, 0.4, 0.8):
        alpha, sigma = levels(schedule, t)
        z = noisy(alpha, sigma)
        x, eps = exact(schedule, z, np.full(4, t), EVERY)
        # The grid's spacing is less than half the width of the narrowest factor: the sum is exact.
        expected = [integrated(z[i], alpha, sigma, i) for i in range(4)]
        np.testing.assert_allclose(x, expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(alpha * x + sigma * eps, z, rtol=1e-12, atol=1e-12)
        for i in range(4):
            density = functools.partial(log_density, alpha=alpha, sigma=sigma, label=i)
            score = slope(density, z[i], 1e-5 * sigma)
            np.testing.assert_allclose(eps[i], -sigma * score, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_float32_is_as_good_as_float64_at_both_ends_of_time(schedule):
    def predict(dtype):
        found = []
        for t in (0.0, 1e-3, 0.999, 1.0):
            z = np.hypot(*levels(schedule, t)) * np.linspace(-1.5, 1.5, 8).reshape(4, 2)
            x, eps = exact(schedule, z.astype(dtype), np.full(4, t, dtype), EVERY)
            assert x.dtype == eps.dtype == dtype
            found.append([x, eps])
        return np.asarray(found)

    single = predict(np.float32)
    with jax.enable_x64(True):
        double = predict(np.float64)
    # Rounding t alone moves a level by 1e-6 where sigma falls steeply.
    np.testing.assert_allclose(single, double, atol=4e-6)


Z = np.asarray([[3.0, -1.0], [0.5, 0.1], [0.0, 0.0], [-2.0, 1.0]], np.float32)


def test_without_signal_the_image_is_the_mean_of_its_class_and_z_is_noise():
    x, eps = exact(RectifiedFlow(), Z, np.ones(4, np.float32), EVERY)
    np.testing.assert_allclose(x, [MEANS[members(c)].mean(0) for c in range(4)], atol=1e-6)
    np.testing.assert_array_equal(eps, Z)


def test_without_noise_z_is_the_image():
    x, eps = exact(RectifiedFlow(), Z, np.zeros(4, np.float32), EVERY)
    np.testing.assert_allclose(x, Z, atol=1e-6)
    np.testing.assert_array_equal(eps, np.zeros_like(Z))


def test_no_label_is_the_null_label_and_guidance_goes_along_the_difference_of_noises():
    schedule, w, t = Cosine(), 0.5, np.asarray([0.3, 0.8, 0.1, 0.6], np.float32)
    denoiser = TOY.denoiser(schedule)
    null, cond = (jnp.asarray(label, jnp.int32) for label in ([TOY.num_classes] * 4, EVERY))
    x, eps = exact(schedule, Z, t, null)
    for a, b in zip(jax.jit(denoiser.predict)(Z, t, {}), (x, eps), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    pull = jax.jit(guided(denoiser, w, {"label": null}).predict)(Z, t, {"label": cond})
    np.testing.assert_allclose(
        pull.eps, (1 + w) * exact(schedule, Z, t, EVERY).eps - w * eps, atol=1e-5
    )


def test_images_of_any_shape_are_points():
    t, denoiser = jnp.full((4,), 0.5), TOY.denoiser(Cosine())
    assert denoiser.shape == (1, 1, 2)
    x, eps = exact(Cosine(), Z.reshape(4, 1, 1, 2), t, EVERY)
    assert x.shape == eps.shape == (4, 1, 1, 2)
    np.testing.assert_array_equal(x.reshape(4, 2), exact(Cosine(), Z, t, EVERY)[0])


def test_gradients_flow_through_the_image(x64):
    # A class has components of weight 0, whose logits are -inf.
    schedule, label = RectifiedFlow(), jnp.asarray([1])

    def image(z, t):
        return TOY.denoiser(schedule)(z[None], t, {"label": label}).x[0]

    jacobian = jax.jit(jax.jacrev(image))
    for t in (0.0, 0.3, 1.0):
        times, z = np.asarray([t]), np.asarray([0.2, 0.4])
        expected = slope(lambda z, t=times: exact(schedule, z[None], t, label)[0][0], z, 1e-5)
        np.testing.assert_allclose(jacobian(z, times), expected, atol=1e-8)


def test_samples_have_the_moments_of_their_labels():
    label = np.repeat([0, 1, 2, 3], 20_000)
    x = TOY.sample(np.random.default_rng(0), label)
    for c in range(4):
        means = MEANS[members(c)]
        np.testing.assert_allclose(x[label == c].mean(0), means.mean(0), atol=0.02)
        covariance = np.cov(means.T, bias=True) + TOY.std**2 * np.eye(2)
        np.testing.assert_allclose(np.cov(x[label == c].T), covariance, atol=0.02)


def test_one_component_is_a_gaussian():
    mean, t = MEANS[:1], np.asarray([0.2, 0.4, 0.6, 1.0], np.float32)
    single = jax.jit(Mixture(mean, 0.5, (0,)).denoiser(Cosine()).predict)(Z, t, {})
    expected = jax.jit(gaussian_denoiser(Cosine(), 0.5, mean).predict)(Z, t, {})
    for a, b in zip(single, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


# The signal of a Gaussian of standard deviation 0.5 over its noise: papers/boot_sid_swd.md, T2.
SIGNAL = {
    0.02: 0.469560,
    0.1: 0.366102,
    0.25: 0.235073,
    0.5: 0.118034,
    0.75: 0.051233,
    0.9: 0.019767,
    0.98: 0.003928,
}
WHOLE = Cosine(-60.0, 60.0)  # cos(pi t / 2) and sin(pi t / 2) to 1e-13.


@functools.partial(jax.jit, static_argnums=0)
def mapped(schedule, mean, std, z, ends, num_steps):
    """Returns ode_map of a Gaussian, compiled once for a schedule."""
    return ode_map(gaussian_denoiser(schedule, std, mean), z, {}, *ends, num_steps)


def signal(schedule, z, eps, t):
    alpha, sigma = levels(schedule, t)
    return (z - sigma * eps) / alpha


def test_the_signal_of_a_gaussian_has_its_known_values(x64):
    eps = np.ones((9, 1))
    for t, expected in SIGNAL.items():
        z = mapped(WHOLE, 0.3, 0.5, eps, (1.0, t), 2000)
        np.testing.assert_allclose(signal(WHOLE, z, eps, t) - 0.3, expected, atol=2e-6)


@pytest.mark.parametrize(("steps", "expected"), [(10, 0.46437), (25, 0.49121), (50, 0.49707)])
def test_heuns_method_has_its_known_error(x64, steps, expected):
    eps = np.ones((9, 1))
    z = mapped(WHOLE, 0.0, 0.5, eps, (0.999, 1e-4), steps)
    np.testing.assert_allclose(signal(WHOLE, z, eps, 1e-4), expected, atol=6e-6)


@pytest.mark.parametrize("schedule", [WHOLE, Karras(), RectifiedFlow()], ids=repr)
def test_the_map_of_a_gaussian_is_of_second_order_at_the_exact_one(x64, schedule):
    # The flow takes z_1 to m + s (z_1 - alpha m) / sqrt(alpha^2 s^2 + sigma^2), where z_0 is clean.
    mean, std = 0.3, 0.5
    alpha, sigma = levels(schedule, 1.0)
    z = sigma * np.linspace(-2, 2, 9)[:, None]
    expected = mean + std * (z - alpha * mean) / np.hypot(alpha * std, sigma)
    clean = levels(schedule, 0.0)[1]
    expected += (np.hypot(std, clean) / std - 1) * (expected - mean)
    errors = [
        np.abs(mapped(schedule, mean, std, z, (1.0, 0.0), n) - expected).max()
        for n in (64, 128, 256)
    ]
    assert errors[2] < 1e-3
    assert 3 < errors[0] / errors[1] < 5
    assert 3 < errors[1] / errors[2] < 5


def test_the_ring_is_the_toy_of_the_specification():
    # Section 8.4: what the exact denoiser makes of noise in one call at sigma 2.5 is 0.256 away.
    toy, schedule, rng = ring(), Cosine(), np.random.default_rng(0)
    label, eps = np.arange(8000) % 4, rng.normal(size=(8000, 2)).astype(np.float32)
    data, denoiser = toy.sample(rng, label), toy.denoiser(schedule)
    t = schedule.time(jnp.asarray(-2 * np.log(2.5)))
    z = levels(schedule, t)[1] * eps
    start = jax.jit(denoiser.predict)(z, np.full(8000, t, np.float32), {"label": label}).x
    distances = by_class(np.asarray(start), label, data, label)
    assert abs(np.mean(list(distances.values())) - 0.256) < 0.005


def test_many_steps_of_ddim_end_where_the_map_does():
    denoiser, cond = ring().denoiser(Cosine()), {"label": jnp.arange(400) % 4}
    eps = jnp.asarray(np.random.default_rng(0).normal(size=(400, 2)), jnp.float32)
    x = jax.jit(lambda z: ode_map(denoiser, z, cond, 1.0, 0.0, 256))(eps)
    walk = jax.jit(lambda n: ddim(denoiser, eps, cond, n))
    errors = [float(jnp.sqrt(jnp.mean((walk(n) - x) ** 2))) for n in (128, 256)]
    # The map's own error is of second order, below 0.001.
    assert errors[1] < 0.004
    assert 1.6 < errors[0] / errors[1] < 2.4
