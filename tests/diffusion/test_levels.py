import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.levels import LEVELS, level_of, time_of
from distill_jax.diffusion.schedule import Cosine, Karras, LinearBeta, RectifiedFlow

SCHEDULES = (Cosine(), LinearBeta(), Karras(), RectifiedFlow())
STABLE_DIFFUSION = LinearBeta(0.00085, 0.012, 1000, 2)


def draw(law, schedule, low, high, num=4000):
    return LEVELS[law](jax.random.key(0), schedule, (num,), low, high)


@pytest.mark.parametrize("law", LEVELS)
def test_drawn_levels_fill_the_range_and_stay_in_it(law):
    for schedule in SCHEDULES:
        t = draw(law, schedule, 0.1, 4.0)
        level = level_of(schedule, t)
        assert t.shape == (4000,)
        assert 0.0999 < level.min() < 0.12
        assert 3.9 < level.max() < 4.001


@pytest.mark.parametrize("law", ["karras", "lognormal"])
def test_laws_of_the_level_mean_the_same_for_every_schedule(law):
    first, *others = (level_of(s, draw(law, s, 0.01, 20.0)) for s in SCHEDULES)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=1e-3)


def test_the_uniform_law_is_uniform_in_time():
    t = np.sort(draw("uniform", Cosine(), 0.138, 12.97))
    ends = [float(time_of(Cosine(), level)) for level in (0.138, 12.97)]
    np.testing.assert_allclose(t, np.linspace(*ends, len(t)), atol=0.02)


def test_medians_are_those_of_the_papers():
    # SiD's tmax = 800 draws levels .002 .. 24.41 of median .965; EDM's training has e^-1.2.
    karras = np.median(level_of(Karras(), draw("karras", Karras(), 0.002, 24.41, 40000)))
    np.testing.assert_allclose(karras, 0.965, rtol=0.05)
    lognormal = np.median(level_of(Karras(), draw("lognormal", Karras(), 0.002, 80.0, 40000)))
    np.testing.assert_allclose(lognormal, np.exp(-1.2), rtol=0.03)


def test_levels_of_stable_diffusions_indices_are_those_that_sid_lsg_uses(x64):
    t = (jnp.asarray([20.0, 625.0, 979.0]) + 1) / 1000
    np.testing.assert_allclose(level_of(STABLE_DIFFUSION, t), [0.138, 2.5017, 12.97], rtol=4e-3)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_time_of_inverts_level_of_and_ends_where_the_schedule_does(schedule, x64):
    t = jnp.asarray([0.02, 0.3, 0.9])
    np.testing.assert_allclose(time_of(schedule, level_of(schedule, t)), t, atol=1e-9)
    beyond = time_of(schedule, jnp.asarray([1e-30, 1e30]))
    np.testing.assert_allclose(beyond, [0, 1], atol=1e-20)
