"""Gaussian data, whose consistency function is known, for the tests of consistency models.

The probability flow keeps u = (z - alpha m) / sqrt(alpha^2 s^2 + sigma^2), so it ends at m + s u.
"""

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import Prediction
from distill_jax.diffusion.schedule import Cosine, Karras, RectifiedFlow, expand
from tests.toys import make_batch

STD, MEAN, SIGMA_DATA = 0.7, -0.2, 0.5
SCHEDULES = [Cosine(-40.0, 40.0), Karras(1e-6, 80.0), RectifiedFlow()]


def fixed(schedule, z, t):
    """Returns u, which is constant along a path."""
    alpha, sigma = expand(schedule.alpha(t), z), expand(schedule.sigma(t), z)
    return (z - alpha * MEAN) / jnp.sqrt(alpha**2 * STD**2 + sigma**2)


def angle(schedule, t):
    """Returns the angle a with tan(a) = sigma / (sigma_data alpha)."""
    return jnp.arctan2(schedule.sigma(t), SIGMA_DATA * schedule.alpha(t))


def student(schedule, slope=0.0):
    """Returns x = m + (1 + slope a) s u: the consistency function if slope is 0."""

    def predict(z, t, cond, key=None):
        gain = expand(1 + slope * angle(schedule, t), z)
        x = MEAN + gain * STD * fixed(schedule, z, t)
        alpha, sigma = expand(schedule.alpha(t), z), expand(schedule.sigma(t), z)
        return Prediction(x, (z - alpha * x) / sigma)

    return Denoiser(schedule, predict, (2, 2, 1))


def data(num=64):
    """Returns a batch of Gaussian images."""
    x = MEAN + STD * jax.random.normal(jax.random.key(3), (num, 2, 2, 1))
    label = jnp.arange(num, dtype=jnp.int32) % 3
    return make_batch(x, {"label": label}, {"label": jnp.full((1,), 3, jnp.int32)})


def by_label(schedule):
    """Returns a denoiser whose x is 0 for the null label 3 and else 1, so 1 + w when guided."""

    def predict(z, t, cond, key=None):
        x = jnp.zeros_like(z) + jnp.where(cond["label"] == 3, 0.0, 1.0)[:, None, None, None]
        return Prediction(x, jnp.zeros_like(z))

    return Denoiser(schedule, predict)


def of_w(schedule, w):
    """Returns a student whose x is 1 + w, of the given w or of its input."""

    def predict(z, t, cond, key=None):
        own = cond["w"] if "w" in cond else jnp.full(t.shape, w)
        return Prediction(jnp.zeros_like(z) + (1 + own)[:, None, None, None], jnp.zeros_like(z))

    return Denoiser(schedule, predict)
