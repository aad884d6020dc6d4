import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import Prediction, eps_from_x, v_from
from distill_jax.diffusion.resize import area, bicubic
from distill_jax.diffusion.samplers import (
    ancestral,
    ddim,
    ddim_step,
    ddim_target,
    renoise,
    stochastic,
)
from distill_jax.diffusion.schedule import Cosine, Karras, RectifiedFlow, add_noise
from distill_jax.diffusion.spectrum import rapsd
from tests.toys import constant_denoiser, gaussian_denoiser

# N, i, x_1, z_mid, x_2, z_s, target, v of the target, for the toy teacher
# x(z, l) = tanh(0.7 z + 0.1 l) at z = 0.5: papers/progressive_and_guided.md, section 5.3.
GOLDEN = [
    (4, 3, -0.92885762, 0.30918853, -0.10610968, 0.27014299, -0.50120524, 0.50122794),
    (4, 1, 0.33637554, 0.48565466, 0.39743013, 0.47408597, 0.37598985, -0.03172994),
    (4, 0, 0.48251847, 0.50088572, 0.58731847, 0.58730099, 0.58731847, -0.32762374),
    (1, 0, -0.92885762, -0.30321831, -0.20912181, -0.20913178, -0.20912181, 0.20914451),
]
SCHEDULES = [Cosine(), RectifiedFlow(), RectifiedFlow(shift=3.0), Karras()]


def toy(schedule):
    def predict(z, t, cond, key=None):
        x = jnp.tanh(0.7 * z + 0.1 * schedule.logsnr(t)[:, None])
        return Prediction(x, eps_from_x(z, x, schedule, t))

    return Denoiser(schedule, predict)


def two_steps(schedule, teacher, z, t, mid, s):
    first = teacher(z, t, {})
    z_mid = ddim_step(schedule, first, mid)
    second = teacher(z_mid, mid, {})
    return first, z_mid, second


@pytest.mark.parametrize("row", GOLDEN)
def test_two_ddim_steps_and_their_target_have_the_golden_values(x64, row):
    n, i, *expected = row
    schedule, z = Cosine(), jnp.asarray([[0.5]])
    t, mid, s = (jnp.asarray([(i + part) / n]) for part in (1.0, 0.5, 0.0))
    first, z_mid, second = two_steps(schedule, toy(schedule), z, t, mid, s)
    z_s = schedule.alpha(s) * second.x + schedule.sigma(s) * second.eps
    target = ddim_target(schedule, first.x, second.x, t, mid, s)
    v = v_from(Prediction(target, eps_from_x(z, target, schedule, t)), schedule, t)
    got = [float(value.ravel()[0]) for value in (first.x, z_mid, second.x, z_s, target, v)]
    np.testing.assert_allclose(got, expected, atol=6e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_ddim_target_is_the_x_whose_one_step_reaches_z_s(x64, schedule):
    z = jax.random.normal(jax.random.key(0), (6, 5))
    t = jnp.asarray([0.3, 0.5, 0.9, 0.99, 0.6, 0.2])
    s, mid = 0.4 * t, 0.8 * t
    first, _, second = two_steps(schedule, toy(schedule), z, t, mid, s)
    target = ddim_target(schedule, first.x, second.x, t, mid, s)
    one = ddim_step(schedule, Prediction(target, eps_from_x(z, target, schedule, t)), s)
    np.testing.assert_allclose(one, ddim_step(schedule, second, s), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_ddim_target_at_the_last_step_is_what_the_sampler_returns(schedule):
    one, zero = jnp.ones(1), jnp.zeros(1)
    x_1, x_2 = jnp.full((1, 3), 0.7), jnp.full((1, 3), -0.2)
    np.testing.assert_array_equal(ddim_target(schedule, x_1, x_2, one, one / 2, zero), x_2)


@pytest.mark.parametrize("num_steps", [2, 512, 4096])
def test_ddim_target_in_float32_is_as_good_as_in_float64(num_steps):
    # The subtract-and-divide form of the reference is off by 1.3e-4 at N = 512 (section 5.3).
    i = np.unique(np.linspace(0, num_steps - 1, 40).astype(int))
    times = [(i + part) / num_steps for part in (1.0, 0.5, 0.0)]

    def weights(dtype):
        t, mid, s = (jnp.asarray(time, dtype) for time in times)
        ones = jnp.ones((len(i), 1), dtype)
        return np.asarray(ddim_target(Cosine(), ones, 0 * ones, t, mid, s), np.float64)

    single = weights(jnp.float32)
    with jax.enable_x64(True):
        double = weights(jnp.float64)
    # |x_1 - x_2| falls like 1 / N, so the target's error is that of c, divided by N.
    np.testing.assert_allclose(single / num_steps, double / num_steps, atol=3e-7)
    assert ((double >= 0) & (double < 1)).all()


def test_ddim_target_weight_has_the_known_values(x64):
    # Section 5.3: c at (N, i) = (4, 3), (4, 1) and (1, 0 without the end-point rule).
    one, nothing = jnp.ones((1, 1)), jnp.zeros((1, 1))
    for n, i, expected in ((4, 3, 0.4802), (4, 1, 0.3512)):
        t, mid, s = (jnp.asarray([(i + part) / n]) for part in (1.0, 0.5, 0.0))
        np.testing.assert_allclose(
            ddim_target(Cosine(), one, nothing, t, mid, s), [[expected]], atol=5e-5
        )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_ddim_of_one_image_returns_it_at_every_number_of_steps(schedule, num_steps):
    z = jax.random.normal(jax.random.key(0), (3, 4))
    x = ddim(constant_denoiser(schedule, 0.25), z, {}, num_steps)
    np.testing.assert_allclose(x, np.full((3, 4), 0.25), atol=1e-6)


@pytest.mark.parametrize("schedule", [Cosine(), Karras(), RectifiedFlow()], ids=repr)
def test_ddim_of_a_gaussian_converges_to_the_probability_flow_map(x64, schedule):
    # For data N(m, s^2) the flow takes z_1 to m + s (z_1 - a m) / sqrt(a^2 s^2 + b^2).
    std, mean, z = 0.5, 0.3, jnp.linspace(-2, 2, 9)[:, None]
    one = jnp.ones(())
    alpha, sigma = schedule.alpha(one), schedule.sigma(one)
    exact = mean + std * (sigma * z - alpha * mean) / jnp.sqrt(alpha**2 * std**2 + sigma**2)
    errors = []
    for num_steps in (64, 128, 256):
        x = ddim(gaussian_denoiser(schedule, std, mean), z, {}, num_steps)
        errors.append(float(jnp.abs(x - exact).max()))
    # First order: halving the step halves the error.
    assert errors[2] < 0.02
    assert 1.7 < errors[0] / errors[1] < 2.4
    assert 1.7 < errors[1] / errors[2] < 2.4


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=repr)
def test_ancestral_sampling_of_a_gaussian_has_its_mean_and_spread(schedule):
    z = jax.random.normal(jax.random.key(1), (20000, 1))
    x = ancestral(jax.random.key(2), gaussian_denoiser(schedule, 0.5, 0.3), z, {}, 256)
    # Standard errors of 20,000 draws are 0.0035 and 0.0025; the grid adds about 0.01.
    assert abs(float(x.mean()) - 0.3) < 0.015
    assert abs(float(x.std()) - 0.5) < 0.02


def linear_map_variance(schedule, gains, std):
    """Returns the variance of z after `gains` [(gain of z, added std), ...] from sigma(1)^2."""
    variance = float(schedule.sigma(jnp.ones(()))) ** 2
    for gain, added in gains:
        variance = gain**2 * variance + added**2
    return variance


@pytest.mark.parametrize("variance", [0.0, 0.4, 1.0])
def test_ancestral_noise_lies_between_the_small_and_the_large_variance(x64, variance):
    # For a Gaussian every step is a line in z plus noise, so the spread of x is known exactly.
    schedule, std, num_steps, gains = Cosine(), 0.5, 3, []
    for i in range(num_steps, 0, -1):
        t, s = jnp.asarray(i / num_steps), jnp.asarray((i - 1) / num_steps)
        (a_t, a_s), (b_t, b_s) = (
            [float(f(u)) for u in (t, s)] for f in (schedule.alpha, schedule.sigma)
        )
        shrink = a_t * std**2 / (a_t**2 * std**2 + b_t**2)
        r = (a_t * b_s / (a_s * b_t)) ** 2
        level = (1 - variance) * np.log(b_s) + variance * np.log(b_t)
        step = (r * a_s / a_t + (1 - r) * a_s * shrink, np.sqrt(1 - r) * np.exp(level))
        gains.append(step if i > 1 else (shrink, 0.0))
    expected = np.sqrt(linear_map_variance(schedule, gains, std))
    z = jax.random.normal(jax.random.key(1), (20000, 1))
    x = ancestral(jax.random.key(2), gaussian_denoiser(schedule, std), z, {}, num_steps, variance)
    # Four standard errors of 20,000 draws.
    np.testing.assert_allclose(float(x.std()), expected, rtol=0.02)


def flow_denoiser(schedule, std):
    """The denoiser whose DDIM step from t reaches the probability flow's z_s exactly, for one s.

    For data N(0, std^2) the flow multiplies z by the ratio of spreads. The step that is asked for
    is the one of the stochastic sampler: 2 / N, or 1 / N from 1 / N; the caller says N.
    """

    def at(num_steps):
        def predict(z, t, cond, key=None):
            s = jnp.maximum(jnp.round(t * num_steps) - 2, 0.0) / num_steps

            def spread(time):
                return jnp.sqrt((schedule.alpha(time) * std) ** 2 + schedule.sigma(time) ** 2)

            target = z * (spread(s) / spread(t))[:, None]
            alpha, sigma = schedule.alpha(s)[:, None], schedule.sigma(s)[:, None]
            ratio = sigma / schedule.sigma(t)[:, None]
            x = (target - ratio * z) / (alpha - ratio * schedule.alpha(t)[:, None])
            return Prediction(x, eps_from_x(z, x, schedule, t))

        return Denoiser(schedule, predict)

    return at


@pytest.mark.parametrize("num_steps", [1, 2, 4, 8])
def test_the_stochastic_sampler_keeps_the_marginals_of_an_exact_flow_map(num_steps):
    # Section 6.5: with the exact map the samples are N(0, std^2) at every N.
    schedule, std = Cosine(), 0.5
    z = jax.random.normal(jax.random.key(1), (40000, 1))
    x = stochastic(jax.random.key(2), flow_denoiser(schedule, std)(num_steps), z, {}, num_steps)
    # Four standard errors of 40,000 draws are 0.007.
    assert abs(float(x.std()) - std) < 0.008
    assert abs(float(x.mean())) < 0.01


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("num_steps", [1, 2, 5])
def test_the_stochastic_sampler_calls_the_network_once_per_step_of_its_grid(schedule, num_steps):
    seen = []

    def predict(z, t, cond, key=None):
        jax.debug.callback(lambda time: seen.append(float(time)), t[0])
        return constant_denoiser(schedule, 0.25).predict(z, t, cond)

    z = jax.random.normal(jax.random.key(0), (2, 3))
    x = stochastic(jax.random.key(1), Denoiser(schedule, predict), z, {}, num_steps)
    jax.effects_barrier()
    np.testing.assert_allclose(x, np.full((2, 3), 0.25), atol=1e-6)
    np.testing.assert_allclose(sorted(seen), np.arange(1, num_steps + 1) / num_steps, rtol=1e-6)


def test_ancestral_sampling_of_one_image_returns_it():
    z = jax.random.normal(jax.random.key(0), (3, 4))
    x = ancestral(jax.random.key(1), constant_denoiser(Cosine(), 0.25), z, {}, 5)
    np.testing.assert_allclose(x, np.full((3, 4), 0.25), atol=1e-6)


def test_one_program_samples_at_every_number_of_steps():
    compiled = jax.jit(lambda z, n: ddim(gaussian_denoiser(Cosine(), 0.5), z, {}, n))
    z = jax.random.normal(jax.random.key(0), (2, 3))
    different = [np.asarray(compiled(z, n)) for n in (1, 3, 50)]
    assert compiled._cache_size() == 1
    assert not np.allclose(different[0], different[1])


def recorder(schedule, value):
    """A constant denoiser that records every z and t of its calls."""
    seen = []

    def predict(z, t, cond, key=None):
        seen.append((z, t))
        return constant_denoiser(schedule, value).predict(z, t, cond)

    return Denoiser(schedule, predict), seen


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_renoise_calls_once_per_time_at_its_side_and_returns_the_last_x(schedule):
    denoiser, seen = recorder(schedule, 0.25)
    z = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    times = (0.9, 0.7, 0.5, 0.2)
    x = renoise(jax.random.key(1), denoiser, z, {}, times, (4, 4, 6, 8))
    np.testing.assert_allclose(x, np.full((2, 8, 8, 3), 0.25), atol=1e-6)
    assert [z_t.shape for z_t, _ in seen] == [(2, side, side, 3) for side in (4, 4, 6, 8)]
    np.testing.assert_allclose([t[0] for _, t in seen], times)
    first = schedule.sigma(jnp.asarray(0.9)) * z[:, :4, :4]
    np.testing.assert_allclose(seen[0][0], first, rtol=1e-6)


def test_renoise_noises_the_enlarged_x_with_fresh_noise_of_full_strength():
    schedule = RectifiedFlow()
    denoiser, seen = recorder(schedule, 0.25)
    z = jax.random.normal(jax.random.key(0), (4000, 8, 8, 1))
    renoise(jax.random.key(1), denoiser, z, {}, (1.0, 0.8, 0.6), (4, 8, 8))
    noises = [(z_t - schedule.alpha(t[0]) * 0.25) / schedule.sigma(t[0]) for z_t, t in seen]
    for noise in noises:
        # Per pixel, 4,000 draws: a standard error of 0.016 in the mean and 0.022 in the variance.
        np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.08)
        np.testing.assert_allclose(noise.var(axis=0), 1, atol=0.1)
    pairs = ((noises[0], noises[1][:, :4, :4]), (noises[1], noises[2]))
    for a, b in pairs:
        assert abs(float((a * b).mean())) < 0.01
    assert abs(float((noises[1][:, 1:] * noises[1][:, :-1]).mean())) < 0.01


def test_renoise_at_one_time_is_one_call_at_its_level():
    schedule, std = Karras(), 0.5
    z = jax.random.normal(jax.random.key(0), (3, 4, 4, 1))
    t = schedule.time(-2 * jnp.log(jnp.asarray(2.5)))
    x = renoise(jax.random.key(1), gaussian_denoiser(schedule, std), z, {}, (float(t),))
    np.testing.assert_allclose(x, std**2 / (std**2 + 2.5**2) * 2.5 * z, rtol=1e-4)


def test_renoise_refuses_sides_beyond_its_noise():
    with pytest.raises(ValueError, match="the noise has 8 pixels only"):
        renoise(
            jax.random.key(0),
            constant_denoiser(Cosine(), 0.0),
            jnp.zeros((1, 8, 8, 1)),
            {},
            (1.0, 0.5),
            (8, 16),
        )


def test_noise_on_an_enlarged_x_has_the_spectrum_that_enlarged_noise_lacks():
    # papers/boot_sid_swd.md, T9: images with P(k) ~ 1 / k^2 of variance 1, at t = 0.8.
    side, schedule, rng = 16, RectifiedFlow(), np.random.default_rng(0)
    frequency = np.fft.fftfreq(side) * side
    amplitude = 1 / np.maximum(np.hypot(frequency[:, None], frequency), 1)
    white = np.fft.fft2(rng.standard_normal((4000, side, side, 1)), axes=(1, 2))
    x = np.fft.ifft2(white * amplitude[:, :, None], axes=(1, 2)).real
    x = jnp.asarray(x / x.std(), jnp.float32)

    def noised(x):
        eps = jnp.asarray(rng.standard_normal(x.shape), jnp.float32)
        return add_noise(schedule, x, eps, jnp.full(len(x), 0.8))

    low = area(x, side // 2)
    reference = rapsd(np.asarray(noised(x)))
    up_then_noise = rapsd(np.asarray(noised(bicubic(low, side)))) / reference
    noise_then_up = rapsd(np.asarray(bicubic(noised(low), side))) / reference
    np.testing.assert_allclose(up_then_noise[1:], 1, atol=0.05)
    np.testing.assert_allclose(1 / noise_then_up[-1], 22, rtol=0.05)
    np.testing.assert_allclose(noise_then_up[:2].mean(), 2.7, rtol=0.05)
