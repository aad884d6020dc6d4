"""Tests of power-function averages beside direct sums, integrals, and averages tracked in full."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.methods import Phase
from distill_jax.training.averages import Profile, gamma_of, product, reconstruction, updated
from distill_jax.training.update import Rates, make_update, new_state
from tests.toys import make_batch

LENGTHS = (0.05, 0.10)


def weights_of(sigma_rel, t):
    """Returns the weight of each of t iterations: the integral of the profile over (i - 1, i]."""
    ends = np.arange(t + 1.0) ** (gamma_of(sigma_rel) + 1)
    return np.diff(ends) / ends[-1]


def profile(sigma_rel, t):
    return Profile(gamma_of(sigma_rel), t)


def density(p, tau):
    """Returns the profile at tau, from its definition."""
    inside = (p.gamma + 1) * tau**p.gamma / p.iteration ** (p.gamma + 1)
    return np.where(tau < p.iteration, inside, 0)


@functools.cache
def midpoints(t, count=400_000):
    return (np.arange(count) + 0.5) * t / count


def test_gammas_are_those_of_the_paper_and_solve_the_cubic_equation():
    assert [round(gamma_of(each), 2) for each in LENGTHS] == [16.97, 6.94]
    for sigma_rel in (0.001, 0.01, 0.05, 0.15, 0.25, 0.2886):
        g = gamma_of(sigma_rel)
        assert g >= 0
        assert np.sqrt((g + 1) / (g + 3)) / (g + 2) == pytest.approx(sigma_rel, rel=1e-9)


@pytest.mark.parametrize("sigma_rel", [0.02, 0.1, 0.28])
def test_sigma_rel_is_the_standard_deviation_of_the_profile_over_its_length(sigma_rel):
    tau, p = midpoints(80), profile(sigma_rel, 80)
    mass = density(p, tau) * 80 / len(tau)
    mean = mass @ tau
    assert mass.sum() == pytest.approx(1, rel=1e-5)
    assert np.sqrt(mass @ (tau - mean) ** 2) / 80 == pytest.approx(sigma_rel, rel=1e-4)


def test_an_average_is_the_sum_of_all_weights_times_the_integrals_of_its_profile():
    theta = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    gammas = tuple(map(gamma_of, LENGTHS))
    averages = tuple({"a": jnp.full(3, 1e3)} for _ in LENGTHS)  # Of which nothing must remain.
    for i, row in enumerate(theta):
        averages = updated(averages, {"a": jnp.asarray(row)}, gammas, jnp.int32(i), i + 1)
    for sigma_rel, average in zip(LENGTHS, averages, strict=True):
        np.testing.assert_allclose(average["a"], weights_of(sigma_rel, 50) @ theta, atol=2e-6)


def test_an_update_within_an_iteration_changes_no_average():
    (average,) = updated([jnp.ones(2)], jnp.zeros(2), [6.94], jnp.int32(7), jnp.int32(7))
    np.testing.assert_array_equal(average, 1)


def test_late_updates_have_their_share_in_float32():
    t, gamma = 10**8, 16.97  # 1 - 1 / t is 1 in float32.
    (average,) = updated([jnp.zeros(1)], jnp.ones(1), [gamma], jnp.int32(t - 1), jnp.int32(t))
    np.testing.assert_allclose(average, -np.expm1((gamma + 1) * np.log1p(-1 / t)), rtol=1e-5)


def test_inner_products_are_the_integrals_of_products_of_profiles():
    given = [profile(s, t) for s in (0.05, 0.1, 0.25) for t in (30, 80)]
    tau = midpoints(80)
    for a in given:
        for b in given:
            integral = (density(a, tau) * density(b, tau)).mean() * 80
            assert product(a, b) == pytest.approx(integral, rel=1e-4)
            assert product(a, b) == pytest.approx(product(b, a), rel=1e-12)


def stored(t, every):
    """Returns the lengths and iterations of snapshots, and their profiles."""
    pairs = [(s, i) for s in LENGTHS for i in range(every, t + 1, every)]
    gammas = [gamma_of(s) for s, _ in pairs]
    return pairs, Profile(np.array(gammas), np.array([i for _, i in pairs]))


@pytest.mark.parametrize(
    ("sigma_rel", "most"), [(0.05, 1e-5), (0.03, 0.02), (0.07, 0.003), (0.15, 0.01), (0.25, 0.04)]
)
def test_another_length_is_reconstructed_beside_the_one_that_is_tracked(sigma_rel, most):
    t, walk = 640, np.random.default_rng(1).normal(size=(640, 200)).cumsum(0)
    pairs, profiles = stored(t, 20)
    coefficients, error = reconstruction(profiles, profile(sigma_rel, t))
    kept = np.array([weights_of(s, i) @ walk[:i] for s, i in pairs])
    got, direct = coefficients @ kept, weights_of(sigma_rel, t) @ walk
    # Relative to the distance of the average from the weights themselves.
    assert np.linalg.norm(got - direct) < most * np.linalg.norm(walk[-1] - direct)
    assert coefficients.sum() == pytest.approx(1, abs=most + 1e-6)
    tau = midpoints(t)
    total = sum(
        c * density(Profile(*p), tau)
        for c, p in zip(coefficients, zip(*profiles, strict=True), strict=True)
    )
    target = density(profile(sigma_rel, t), tau)
    measured = np.linalg.norm(total - target) / np.linalg.norm(target)
    assert error == pytest.approx(measured, rel=0.01, abs=2e-5)


def test_more_snapshots_have_smaller_errors():
    errors = [
        reconstruction(stored(640, every)[1], profile(0.15, 640))[1] for every in (160, 80, 20)
    ]
    assert errors[0] > 0.05 > errors[1] > 0.02 > 0.003 > errors[2]


def identity(params):
    return params


def pulls(role):
    def loss(method, key, batch, nets):
        return (nets[role]["a"] * jax.random.normal(key, (4,))).sum(), {}

    loss.__qualname__ = f"pulls_{role}"
    return loss


@pytest.mark.parametrize("order", [("student", "fake"), ("fake", "student")])
def test_averages_count_iterations_whichever_phase_is_the_last(order):
    phases = tuple(Phase(role, pulls(role), 2) for role in order)
    params = {role: {"a": jnp.ones(4)} for role in order}
    rates = Rates(0.1, 0, 1.0, 10, 0.0, gammas=tuple(map(gamma_of, LENGTHS)))
    state = new_state(jax.random.key(0), params, optax.identity(), averages=2)
    batch, after = make_batch(None, {}, {"label": jnp.zeros(1, jnp.int32)}), []
    for _ in range(5):
        for index in range(2):
            update = make_update(phases, index, identity, optax.identity())
            for repeat in range(2):
                state, _ = update(None, rates, state, {}, batch, repeat)
        after.append(np.asarray(state.params["student"]["a"]))
    for sigma_rel, average in zip(LENGTHS, state.averages, strict=True):
        direct = weights_of(sigma_rel, 5) @ np.array(after)
        np.testing.assert_allclose(average["a"], direct, rtol=1e-5)
