import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.prediction import (
    PARAMETERIZATIONS,
    Prediction,
    eps_from_x,
    mean_squared,
    v_from,
)
from distill_jax.diffusion.schedule import Cosine, add_noise
from distill_jax.diffusion.weighting import WEIGHTINGS


def errors():
    """Returns the squared errors in x, eps and v of one wrong prediction at many times."""
    schedule, t = Cosine(), jnp.linspace(0.0, 1.0, 21)
    k_x, k_eps, k_wrong = jax.random.split(jax.random.key(1), 3)
    x, eps = jax.random.normal(k_x, (21, 5)), jax.random.normal(k_eps, (21, 5))
    z = add_noise(schedule, x, eps, t)
    wrong = x + jax.random.normal(k_wrong, x.shape)
    wrong_eps = eps_from_x(z, wrong, schedule, t)
    v = v_from(Prediction(x, eps), schedule, t)
    wrong_v = v_from(Prediction(wrong, wrong_eps), schedule, t)
    in_x, in_eps = mean_squared(wrong, x), mean_squared(wrong_eps, eps)
    return schedule.logsnr(t), in_x, in_eps, mean_squared(wrong_v, v)


def test_snr_weight_makes_the_error_of_x_that_of_eps(x64):
    logsnr, in_x, in_eps, _ = errors()
    np.testing.assert_allclose(WEIGHTINGS["snr"](logsnr) * in_x, in_eps, rtol=1e-7)


def test_snr_plus_one_weight_makes_the_error_of_x_that_of_v(x64):
    logsnr, in_x, _, in_v = errors()
    np.testing.assert_allclose(WEIGHTINGS["snr_plus_one"](logsnr) * in_x, in_v, rtol=1e-7)


def test_truncated_snr_weight_gives_the_larger_of_the_errors_of_x_and_eps(x64):
    logsnr, in_x, in_eps, _ = errors()
    weighted = WEIGHTINGS["snr_trunc"](logsnr) * in_x
    np.testing.assert_allclose(weighted, jnp.maximum(in_x, in_eps), rtol=1e-7)


def test_edm_weight_makes_the_error_of_x_that_of_edms_output(x64):
    schedule, t = Cosine(), jnp.linspace(0.0, 1.0, 21)
    z, *outputs = (jax.random.normal(jax.random.key(k), (21, 5)) for k in range(3))
    a, b = (PARAMETERIZATIONS["edm"].predict(output, z, schedule, t).x for output in outputs)
    weighted = WEIGHTINGS["edm"](schedule.logsnr(t)) * mean_squared(a, b)
    np.testing.assert_allclose(weighted, mean_squared(*outputs), rtol=1e-5)


def test_constant_weight_leaves_the_error_of_x():
    np.testing.assert_array_equal(WEIGHTINGS["constant"](jnp.asarray([-5.0, 20.0])), [1, 1])


def test_every_weight_is_finite_at_the_ends_of_a_flow():
    for weight in WEIGHTINGS.values():
        assert jnp.isfinite(weight(jnp.asarray([-jnp.inf, jnp.inf]))).all()
