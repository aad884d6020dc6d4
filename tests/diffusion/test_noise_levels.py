import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.noise_levels import NOISE_LEVELS, SHIFTED_FLOW, level_of, time_of
from distill_jax.diffusion.schedule import Cosine, Karras, LinearBeta, RectifiedFlow

SCHEDULES = (Cosine(), LinearBeta(), Karras(), RectifiedFlow())
STABLE_DIFFUSION = LinearBeta(0.00085, 0.012, 1000, 2)
CONTINUOUS = sorted(NOISE_LEVELS.keys() - {"shifted_flow"})


def draw(name, schedule, low, high, num=4000):
    return NOISE_LEVELS[name](jax.random.key(0), schedule, (num,), low, high)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_drawn_levels_fill_the_range_and_stay_in_it(name):
    for schedule in SCHEDULES:
        t = draw(name, schedule, 0.1, 4.0)
        level = level_of(schedule, t)
        assert t.shape == (4000,)
        assert 0.0999 < level.min() < 0.12
        assert 3.9 < level.max() < 4.001


@pytest.mark.parametrize("name", sorted(NOISE_LEVELS.keys() - {"uniform"}))
def test_distributions_of_the_level_mean_the_same_for_every_schedule(name):
    first, *others = (level_of(s, draw(name, s, 0.01, 20.0)) for s in SCHEDULES)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-3)


def test_the_uniform_distribution_is_uniform_in_time():
    t = np.sort(draw("uniform", Cosine(), 0.138, 12.97))
    ends = [float(time_of(Cosine(), level)) for level in (0.138, 12.97)]
    np.testing.assert_allclose(t, np.linspace(*ends, len(t)), atol=0.02)


def test_the_median_of_edms_distribution_is_that_of_the_paper():
    level = level_of(Karras(), draw("lognormal", Karras(), 0.002, 80.0, 40000))
    np.testing.assert_allclose(np.median(level), np.exp(-1.2), rtol=0.03)


def test_the_median_of_meanflows_distribution_is_that_of_the_paper():
    t = draw("lognormal_meanflow", RectifiedFlow(), 1e-4, 1e4, 40000)
    np.testing.assert_allclose(np.median(t), 1 / (1 + np.exp(0.4)), rtol=0.02)


def sid(q):
    """Returns quantiles of SiD's levels: `generator_loss` of sid_loss.py at 01fbb13, tmax 800."""
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    return (high + (1 - 0.8 * q) * (low - high)) ** 7


def sid_lsg(q):
    """Returns quantiles of SiD-LSG's levels: randint(20, 980), sid_training_loop.py at 709fc22."""
    signal = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)[20:980]
    return np.quantile(np.sqrt((1 - signal) / signal), q)


@pytest.mark.parametrize("schedule", [Cosine(), RectifiedFlow()], ids=repr)
@pytest.mark.parametrize(
    ("released", "levels"),
    [(sid, ("karras", 0.002, 24.41)), (sid_lsg, ("scaled_linear", 0.138, 12.97))],
)
def test_a_real_index_has_the_quantiles_of_the_released_code(released, levels, schedule):
    q = np.asarray([0.1, 0.25, 0.5, 0.75, 0.9])
    level = level_of(schedule, draw(levels[0], schedule, *levels[1:], 1_000_000))
    # A million draws: a standard error below 0.3 % where a level's logarithm is spread the most.
    np.testing.assert_allclose(np.quantile(level, q), released(q), rtol=0.01)


def released_grid():
    """Returns the times of FlowMatchEulerDiscreteScheduler(shift=3), 28 steps, diffusers 0.3x."""
    smallest = 3 * 0.001 / (1 + 2 * 0.001)
    u = np.linspace(1000.0, 1000 * smallest, 28) / 1000
    return 3 * u / (1 + 2 * u)


def test_the_shifted_grid_has_the_noise_levels_that_the_release_publishes():
    # README.md of yandex-research/swd at 9c51e19, "Sigmas", at these indices.
    published = {0: 1.0, 4: 0.9454, 7: 0.8959, 12: 0.7904, 14: 0.7371, 18: 0.6022}
    np.testing.assert_allclose(SHIFTED_FLOW[list(published)], [*published.values()], atol=5e-5)
    np.testing.assert_allclose(SHIFTED_FLOW, released_grid(), rtol=1e-12)


@pytest.mark.parametrize(("highest", "first"), [(1000.0, 0), (3.77, 12), (1.51, 18)])
def test_the_shifted_grid_draws_the_released_indices_each_as_likely(highest, first):
    t = draw("shifted_flow", RectifiedFlow(), 0.009, highest, 28_000)
    times, counts = np.unique(t, return_counts=True)
    np.testing.assert_allclose(times[::-1], released_grid()[first:], rtol=1e-5)
    expected = 28_000 / (28 - first)
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


def test_levels_of_stable_diffusions_indices_are_those_that_sid_lsg_uses(x64):
    t = (jnp.asarray([20.0, 625.0, 979.0]) + 1) / 1000
    np.testing.assert_allclose(level_of(STABLE_DIFFUSION, t), [0.138, 2.5017, 12.97], rtol=4e-3)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_time_of_inverts_level_of_and_ends_where_the_schedule_does(schedule, x64):
    t = jnp.asarray([0.02, 0.3, 0.9])
    np.testing.assert_allclose(time_of(schedule, level_of(schedule, t)), t, atol=1e-9)
    beyond = time_of(schedule, jnp.asarray([1e-30, 1e30]))
    np.testing.assert_allclose(beyond, [0, 1], atol=1e-20)
