"""Weightings of the loss |x_hat - x|^2 as functions of logsnr (Salimans & Ho 2022, section 4)."""

import jax
import jax.numpy as jnp

from distill_jax.diffusion.prediction import SIGMA_DATA

LOGSNR_MAX = 20.0  # A flow's logsnr is inf at t = 0; e^20 |x_hat - x|^2 is accurate in float32.


def constant(logsnr: jax.Array) -> jax.Array:
    """Returns 1: the loss is the mean squared error of x."""
    return jnp.ones_like(logsnr)


def snr(logsnr: jax.Array) -> jax.Array:
    """Returns e^logsnr: the loss is the mean squared error of eps."""
    return jnp.exp(jnp.minimum(logsnr, LOGSNR_MAX))


def snr_trunc(logsnr: jax.Array) -> jax.Array:
    """Returns max(e^logsnr, 1): the loss is the larger of the errors of x and eps."""
    return jnp.maximum(snr(logsnr), 1.0)


def snr_plus_one(logsnr: jax.Array) -> jax.Array:
    """Returns e^logsnr + 1: the loss is the mean squared error of v."""
    return snr(logsnr) + 1.0


def edm(logsnr: jax.Array) -> jax.Array:
    """Returns e^logsnr + 1 / sigma_data^2: the loss is the mean squared error of EDM's output.

    Karras et al. (2022, arXiv:2206.00364), Table 1, lambda(sigma).
    """
    return snr(logsnr) + 1 / SIGMA_DATA**2


WEIGHTINGS = {
    "constant": constant,
    "snr": snr,
    "snr_trunc": snr_trunc,
    "snr_plus_one": snr_plus_one,
    "edm": edm,
}
