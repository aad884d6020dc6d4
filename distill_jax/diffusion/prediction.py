"""Parameterizations: conversions of a network's output into a Prediction(x, eps)."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.schedule import Schedule, expand
from distill_jax.typing import Image, Output, Time


class Prediction(NamedTuple):
    """A clean image and a noise with z_t = alpha x + sigma eps, both (b, *s)."""

    x: Image
    eps: Image


def unscaled(z: Image, schedule: Schedule, t: Time) -> Image:
    """Returns z unchanged."""
    return z


class Parameterization(NamedTuple):
    """A scaling of the network's input and a conversion of its output.

    Attributes:
      channels: output channels per channel of the image.
      predict: (output, z, schedule, t) -> Prediction.
      scale: (z, schedule, t) -> the network's input.
      needs_signal: whether `predict` divides by alpha, which must then be above 0 at t = 1 too.
      needs_power: whether `predict` is correct only if alpha^2 + sigma^2 = 1.
    """

    channels: int
    predict: Callable[[Output, Image, Schedule, Time], Prediction]
    scale: Callable[[Image, Schedule, Time], Image] = unscaled
    needs_signal: bool = False
    needs_power: bool = False

    def misfit(self, schedule: Schedule) -> str:
        """Explains why this head does not fit the schedule; "" if it fits at all times."""
        t = jnp.linspace(0.0, 1.0, 9)
        alpha, sigma = np.asarray(schedule.alpha(t)), np.asarray(schedule.sigma(t))
        if self.needs_signal and alpha[-1] <= 0:
            return f"alpha(1) is {alpha[-1]:g}; this head divides by it and needs alpha(1) > 0"
        power = alpha**2 + sigma**2
        worst = np.abs(power - 1).argmax()
        if self.needs_power and np.abs(power[worst] - 1) > 1e-4:  # Rounding leaves 1e-6.
            return (
                f"alpha^2 + sigma^2 is {power[worst]:g} at t = {t[worst]:g}; this head needs 1 at "
                "all times"
            )
        return ""


def eps_from_x(z: Image, x: Image, schedule: Schedule, t: Time) -> Image:
    """Returns eps = (z - alpha x) / sigma, the noise in z for a given x.

    Where sigma is 0 (t = 0 of a rectified flow), z contains no noise, and eps is 0.
    """
    alpha, sigma = expand(schedule.alpha(t), z), expand(schedule.sigma(t), z)
    some = sigma > 0
    return jnp.where(some, (z - alpha * x) / jnp.where(some, sigma, 1.0), 0.0)


def v_from(prediction: Prediction, schedule: Schedule, t: Time) -> Image:
    """Returns v = alpha eps - sigma x (Salimans & Ho 2022, section 4)."""
    alpha, sigma = expand(schedule.alpha(t), prediction.x), expand(schedule.sigma(t), prediction.x)
    return alpha * prediction.eps - sigma * prediction.x


def from_x(output: Output, z: Image, schedule: Schedule, t: Time) -> Prediction:
    """Converts an output that is x."""
    return Prediction(output, eps_from_x(z, output, schedule, t))


def from_eps(output: Output, z: Image, schedule: Schedule, t: Time) -> Prediction:
    """Converts an output that is eps; x = (z - sigma eps) / alpha needs alpha(1) > 0."""
    x = (z - expand(schedule.sigma(t), z) * output) / expand(schedule.alpha(t), z)
    return Prediction(x, output)


def from_v(output: Output, z: Image, schedule: Schedule, t: Time) -> Prediction:
    """Converts an output that is v = alpha eps - sigma x.

        x = (alpha z - sigma v) / p,   eps = (sigma z + alpha v) / p,   p = alpha^2 + sigma^2

    p is 1 for a variance-preserving schedule. Salimans & Ho (2022), section 4.
    """
    alpha, sigma = expand(schedule.alpha(t), z), expand(schedule.sigma(t), z)
    power = alpha**2 + sigma**2
    return Prediction((alpha * z - sigma * output) / power, (sigma * z + alpha * output) / power)


def from_both(output: Output, z: Image, schedule: Schedule, t: Time) -> Prediction:
    """Converts an output with an x head and an eps head, side by side in the channels.

        x = sigma^2 x_head + alpha (z - sigma eps_head)

    Salimans & Ho (2022), section 4. The x head dominates at high noise and the eps head at low
    noise. The schedule must be variance-preserving.
    """
    x_head, eps_head = jnp.split(output, 2, axis=-1)
    alpha, sigma = expand(schedule.alpha(t), z), expand(schedule.sigma(t), z)
    return from_x(sigma**2 * x_head + alpha * (z - sigma * eps_head), z, schedule, t)


def from_flow(output: Output, z: Image, schedule: Schedule, t: Time) -> Prediction:
    """Converts an output that is u = eps - x.

        x = (z - sigma u) / n,   eps = (z + alpha u) / n,   n = alpha + sigma

    n is 1 for a rectified flow (Liu et al. 2022, arXiv:2209.03003).
    """
    alpha, sigma = expand(schedule.alpha(t), z), expand(schedule.sigma(t), z)
    total = alpha + sigma
    return Prediction((z - sigma * output) / total, (z + alpha * output) / total)


SIGMA_DATA = 0.5  # The standard deviation of images in [-1, 1] that EDM assumes.


def edm_scale(z: Image, schedule: Schedule, t: Time) -> Image:
    """Returns c_in z = z / sqrt(sigma^2 + alpha^2 sigma_data^2), which has variance 1."""
    return z / expand(_edm_norm(schedule, t), z)


def from_edm(output: Output, z: Image, schedule: Schedule, t: Time) -> Prediction:
    """Converts an output with EDM's preconditioning, x = c_skip z + c_out output, for any alpha.

        c_skip = alpha sigma_data^2 / n^2,   c_out = sigma sigma_data / n,
        n^2 = sigma^2 + alpha^2 sigma_data^2

    Karras et al. (2022, arXiv:2206.00364), equation 7 and Table 1, with alpha = 1. Inserting
    z / alpha at the noise level sigma / alpha gives these equations. eps is sigma z / n^2 -
    alpha sigma_data output / n, which divides by no small number.
    """
    alpha, sigma = expand(schedule.alpha(t), z), expand(schedule.sigma(t), z)
    norm = expand(_edm_norm(schedule, t), z)
    x = (alpha * SIGMA_DATA**2 / norm * z + sigma * SIGMA_DATA * output) / norm
    eps = (sigma / norm * z - alpha * SIGMA_DATA * output) / norm
    return Prediction(x, eps)


def _edm_norm(schedule: Schedule, t: Time) -> Time:
    """Returns n = sqrt(sigma^2 + alpha^2 sigma_data^2)."""
    return jnp.sqrt(schedule.sigma(t) ** 2 + (schedule.alpha(t) * SIGMA_DATA) ** 2)


PARAMETERIZATIONS = {
    "x": Parameterization(1, from_x),
    "eps": Parameterization(1, from_eps, needs_signal=True),
    "v": Parameterization(1, from_v),
    "both": Parameterization(2, from_both, needs_power=True),
    "flow": Parameterization(1, from_flow),
    "edm": Parameterization(1, from_edm, edm_scale),
}

# The parameterizations whose eps is accurate at t = 0, on a clean image.
ENCODERS = ("v", "eps", "flow", "edm")


def check_head(name: str, schedule: Schedule) -> None:
    """Raises ValueError where PARAMETERIZATIONS[name] does not fit the schedule."""
    if why := PARAMETERIZATIONS[name].misfit(schedule):
        others = (other for other, head in PARAMETERIZATIONS.items() if not head.misfit(schedule))
        raise ValueError(
            f"parameterization is {name!r} and schedule {schedule}: {why}; set "
            f"config.parameterization to one of {', '.join(others)}, or take another schedule"
        )


def mean_squared(a: Image, b: Image) -> jax.Array:
    """Returns the mean of (a - b)^2 over all axes but the batch axis, shape (b,)."""
    return jnp.mean(jnp.square(a - b), axis=tuple(range(1, a.ndim)))
