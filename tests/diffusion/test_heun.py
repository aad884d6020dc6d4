import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.analytic import ring
from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.heun import Churn, heun
from distill_jax.diffusion.noise import step_noise
from distill_jax.diffusion.schedule import Cosine, Karras, RectifiedFlow
from distill_jax.diffusion.trained import Heun
from tests.toys import constant_denoiser, gaussian_denoiser

KEY = jax.random.key(3)
MEANS = np.asarray(ring().means, np.float64)
SCHEDULES = [Karras(), Cosine(), RectifiedFlow()]
PUBLISHED = Churn(40.0, 0.05, 50.0, 1.003)  # Karras et al. (2022), Table 5, ImageNet 64x64.


def denoised(x, level):
    """Returns E[x | noisy x] of `ring` at a noise level, in float64."""
    variance = ring().std ** 2 + level**2
    logits = -((x[:, None] - MEANS) ** 2).sum(axis=-1) / (2 * variance)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    mean = weights @ MEANS / weights.sum(axis=1, keepdims=True)
    return mean + ring().std ** 2 / variance * (x - mean)


def algorithm_2(x, num_steps, churn, noises):
    """Returns samples by Karras et al. (2022), Algorithm 2, and its number of calls, in NumPy."""
    grid = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), num_steps) ** 7 if num_steps > 1 else [80.0]
    t, x, calls = np.append(grid, 0.0), 80.0 * x, 0
    for i in range(num_steps):
        gamma = min(churn.amount / num_steps, 2**0.5 - 1) if churn.low <= t[i] <= churn.high else 0
        t_hat = t[i] + gamma * t[i]
        x_hat = x + np.sqrt(t_hat**2 - t[i] ** 2) * churn.noise * noises[i]
        d = (x_hat - denoised(x_hat, t_hat)) / t_hat
        x, calls = x_hat + (t[i + 1] - t_hat) * d, calls + 1
        if t[i + 1] != 0:
            d_next = (x - denoised(x, t[i + 1])) / t[i + 1]
            x, calls = x_hat + (t[i + 1] - t_hat) * (d / 2 + d_next / 2), calls + 1
    return x, calls


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("churn", [Churn(), PUBLISHED], ids=["algorithm 1", "algorithm 2"])
def test_samples_are_those_of_the_papers_algorithm(schedule, churn, x64):
    z = jax.random.normal(jax.random.key(0), (16, 1, 1, 2))
    for num_steps in (1, 2, 18):
        noises = [np.asarray(step_noise(KEY, i, z)).reshape(-1, 2) for i in range(num_steps)]
        expected, calls = algorithm_2(np.asarray(z).reshape(-1, 2), num_steps, churn, noises)
        x = heun(KEY, ring().denoiser(schedule), z, {}, num_steps, churn)
        np.testing.assert_allclose(x.reshape(-1, 2), expected, atol=1e-9)
        assert Heun(num_steps).calls == calls == 2 * num_steps - 1


def test_doubling_the_steps_divides_the_error_by_four(x64):
    # For data N(0, s^2) the flow multiplies x by the ratio of sqrt(s^2 + level^2), and the last
    # call by s^2 / (s^2 + level^2): the only error is that of the steps between the ends.
    std, z = 0.5, jax.random.normal(jax.random.key(0), (4, 3))
    low, high = (np.hypot(std, level) for level in (0.002, 80.0))
    exact = 80.0 * z * low / high * std**2 / low**2
    denoiser = gaussian_denoiser(Karras(), std)
    errors = [
        float(jnp.abs(Heun(steps + 1)(KEY, denoiser, z, {}) - exact).max())
        for steps in (32, 64, 128)
    ]
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 4, rtol=0.1)


@pytest.mark.parametrize("num_steps", [1, 2, 18])
def test_the_network_is_called_twice_per_step_and_once_in_the_last(num_steps):
    seen, schedule = [], Karras()

    def predict(z, t, cond, key=None):
        jax.debug.callback(lambda time: seen.append(float(time)), t[0])
        return constant_denoiser(schedule, 0.25).predict(z, t, cond)

    z = jax.random.normal(KEY, (2, 3))
    x = Heun(num_steps)(KEY, Denoiser(schedule, predict), z, {})
    jax.effects_barrier()
    np.testing.assert_allclose(x, np.full((2, 3), 0.25), atol=1e-5)
    assert len(seen) == Heun(num_steps).calls
    times = np.linspace(1, 0, num_steps)  # The schedule's own grid is EDM's.
    expected = sorted([times[0], *np.repeat(times[1:], 2)])
    np.testing.assert_allclose(sorted(seen), expected, atol=1e-5)


def test_churn_keeps_a_gaussian_as_wide_as_it_is():
    schedule, std = Karras(), 0.5
    z = jax.random.normal(jax.random.key(1), (20_000, 1))
    x = Heun(64, churn=20.0)(KEY, gaussian_denoiser(schedule, std), z, {})
    # Four standard errors of 20,000 draws, and the error of 64 steps.
    np.testing.assert_allclose(float(x.std()), std, rtol=0.03)


def test_one_program_samples_at_every_number_of_steps():
    compiled = jax.jit(lambda z, sampler: sampler(KEY, gaussian_denoiser(Karras(), 0.5), z, {}))
    z = jax.random.normal(KEY, (2, 3))
    different = [np.asarray(compiled(z, Heun(n))) for n in (1, 2, 18)]
    assert compiled._cache_size() == 1
    assert not np.allclose(different[1], different[2])
