import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.prediction import PARAMETERIZATIONS, SIGMA_DATA, check_head, v_from
from distill_jax.diffusion.schedule import (
    SCHEDULES,
    Cosine,
    Karras,
    RectifiedFlow,
    add_noise,
    expand,
)

TIMES = np.asarray([0.0, 1e-3, 0.2, 0.5, 0.8, 1 - 1e-3, 1.0])
THREE = [Cosine(), RectifiedFlow(), Karras()]


def truth(schedule):
    k_x, k_eps = jax.random.split(jax.random.key(0))
    shape = (len(TIMES), 4, 4, 2)
    x, eps = jax.random.normal(k_x, shape), jax.random.normal(k_eps, shape)
    return x, eps, add_noise(schedule, x, eps, jnp.asarray(TIMES))


def outputs(schedule, x, eps, times=TIMES):
    """Returns the output of a perfect network of each parameterization."""
    alpha, sigma = (expand(f(jnp.asarray(times)), x) for f in (schedule.alpha, schedule.sigma))
    norm = jnp.sqrt(sigma**2 + (SIGMA_DATA * alpha) ** 2)
    return {
        "x": x,
        "eps": eps,
        "v": alpha * eps - sigma * x,
        "both": jnp.concatenate([x, eps], axis=-1),
        "flow": eps - x,
        "edm": (sigma / SIGMA_DATA * x - alpha * SIGMA_DATA * eps) / norm,
    }


MISFITS = {
    ("both", "karras"): r"alpha\^2 \+ sigma\^2 is 6401 at t = 1; this head needs 1 at all times",
    ("both", "rectified_flow"): r"alpha\^2 \+ sigma\^2 is 0.5 at t = 0.5",
    ("eps", "rectified_flow"): r"alpha\(1\) is 0; this head divides by it",
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("head", PARAMETERIZATIONS)
def test_a_head_is_right_at_both_ends_and_between_or_refused(head, name):
    schedule, times = SCHEDULES[name](), jnp.asarray([0.0, 0.5, 1.0])
    if why := MISFITS.get((head, name)):
        with pytest.raises(ValueError, match=why + ".* set config.parameterization to one of x, "):
            check_head(head, schedule)
        return
    check_head(head, schedule)
    x, eps = np.random.default_rng(0).normal(size=(2, 3, 2, 2, 1)).astype(np.float32)
    alpha, sigma = (np.reshape(f(times), (3, 1, 1, 1)) for f in (schedule.alpha, schedule.sigma))
    output = outputs(schedule, jnp.asarray(x), jnp.asarray(eps), times)[head]
    z = jnp.asarray(alpha * x + sigma * eps)
    got = PARAMETERIZATIONS[head].predict(output, z, schedule, times)
    # About 8 roundings of numbers up to the size of z, 3 (alpha + sigma), which a head that
    # divides by alpha or sigma enlarges.
    rounding = 8 * 2.0**-24 * 3 * (alpha + sigma)
    in_x = rounding / alpha if head == "eps" else rounding
    in_eps = rounding / np.maximum(sigma, 1e-9) if head in ("x", "both") else rounding
    np.testing.assert_array_less(np.abs(got.x - x), in_x + 0 * x)
    assert np.isfinite(got.eps).all()
    known = np.broadcast_to(sigma > 0 if head in ("x", "both", "edm") else True, x.shape)
    np.testing.assert_array_less(np.abs(got.eps - eps)[known], (in_eps + 0 * x)[known])


def test_where_no_noise_is_left_the_gradient_of_an_x_head_is_finite():
    def total(output, t):
        z = jnp.zeros_like(output)
        prediction = PARAMETERIZATIONS["x"].predict(output, z, RectifiedFlow(), t)
        return jnp.sum(prediction.x + prediction.eps)

    gradient = jax.grad(total)(jnp.ones((2, 1)), jnp.asarray([0.0, 0.5]))
    np.testing.assert_allclose(gradient, [[1.0], [0.0]], atol=1e-6)  # eps = -x at t = 1/2.


@pytest.mark.parametrize("name", ["v", "flow"])
@pytest.mark.parametrize("schedule", THREE, ids=repr)
def test_a_perfect_network_gives_back_x_and_eps_at_every_time(x64, name, schedule):
    x, eps, z = truth(schedule)
    prediction = PARAMETERIZATIONS[name].predict(
        outputs(schedule, x, eps)[name], z, schedule, jnp.asarray(TIMES)
    )
    np.testing.assert_allclose(prediction.x, x, atol=1e-9)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-9)


@pytest.mark.parametrize("name", ["x", "eps", "both"])
def test_a_perfect_network_gives_back_x_and_eps_where_it_may_divide(x64, name):
    schedule = Cosine()
    x, eps, z = truth(schedule)
    prediction = PARAMETERIZATIONS[name].predict(
        outputs(schedule, x, eps)[name], z, schedule, jnp.asarray(TIMES)
    )
    # 1 / sigma(0) and 1 / alpha(1) are 2.2e4: they amplify float64's rounding to about 1e-11.
    np.testing.assert_allclose(prediction.x, x, atol=1e-10)
    np.testing.assert_allclose(prediction.eps, eps, atol=1e-10)


@pytest.mark.parametrize("name", PARAMETERIZATIONS)
def test_every_prediction_recombines_to_z_whatever_the_network_says(x64, name):
    schedule = Cosine()
    _, _, z = truth(schedule)
    head = PARAMETERIZATIONS[name]
    output = jax.random.normal(jax.random.key(5), z.shape[:-1] + (head.channels * z.shape[-1],))
    if name == "flow":
        schedule = RectifiedFlow()
    prediction = head.predict(output, z, schedule, jnp.asarray(TIMES))
    np.testing.assert_allclose(add_noise(schedule, *prediction, jnp.asarray(TIMES)), z, atol=1e-9)


def test_v_in_float32_survives_both_ends():
    schedule = Cosine()
    x, eps, z = truth(schedule)
    prediction = PARAMETERIZATIONS["v"].predict(
        outputs(schedule, x, eps)["v"], z, schedule, jnp.asarray(TIMES)
    )
    # Sums of products of numbers up to 4: a few units in the last place of float32.
    np.testing.assert_allclose(prediction.x, x, atol=2e-6)
    np.testing.assert_allclose(prediction.eps, eps, atol=2e-6)


def test_v_from_a_prediction_is_the_v_that_made_it(x64):
    schedule = Cosine()
    x, eps, z = truth(schedule)
    v = outputs(schedule, x, eps)["v"]
    prediction = PARAMETERIZATIONS["v"].predict(v, z, schedule, jnp.asarray(TIMES))
    np.testing.assert_allclose(v_from(prediction, schedule, jnp.asarray(TIMES)), v, atol=1e-12)


def test_both_leans_on_x_at_high_noise_and_on_eps_at_low_noise(x64):
    schedule, zeros = Cosine(), jnp.zeros((2, 1, 1, 1))
    t = jnp.asarray([1.0, 0.0])
    output = jnp.concatenate([zeros + 0.5, zeros + 0.25], axis=-1)
    x = PARAMETERIZATIONS["both"].predict(output, zeros, schedule, t).x.ravel()
    # At t = 1 x_head; at t = 0 (z - sigma eps_head) / alpha, with sigma(0) = 4.54e-5.
    np.testing.assert_allclose(x, [0.5, -0.25 * 4.53999e-5], atol=2e-5)
    np.testing.assert_allclose(x[1], -0.25 * 4.53999e-5, rtol=1e-3)
