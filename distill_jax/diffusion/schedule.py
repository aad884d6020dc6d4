"""Noise schedules: z_t = alpha(t) x + sigma(t) eps for t in [0, 1], 0 clean, 1 noise."""

import dataclasses
import functools
import math
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.runtime.options import MAX_STEPS, OptionError, check_options, number, option, whole
from distill_jax.typing import Image, Time

RATE = number(0, 1, without=(0, 1))  # Of the betas.


@runtime_checkable
class Schedule(Protocol):
    """A noise schedule: the signal and noise level at every time t in [0, 1].

    Methods take arrays of any shape and keep their precision. `logsnr(t)` = log(alpha^2 / sigma^2)
    decreases in t, and `time` is its inverse. Both ends are legal inputs; if `logsnr` is infinite
    there (rectified flow), `alpha` and `sigma` are still exact.
    """

    def alpha(self, t: jax.Array) -> jax.Array:
        """Returns the signal level at t."""
        ...

    def sigma(self, t: jax.Array) -> jax.Array:
        """Returns the noise level at t."""
        ...

    def logsnr(self, t: jax.Array) -> jax.Array:
        """Returns log(alpha^2 / sigma^2) at t."""
        ...

    def time(self, logsnr: jax.Array) -> jax.Array:
        """Returns the t that has this logsnr."""
        ...


class VariancePreserving(Schedule):
    """A schedule with alpha^2 + sigma^2 = 1; logsnr gives both levels without cancellation."""

    def alpha(self, t: jax.Array) -> jax.Array:
        """Returns sqrt(sigmoid(logsnr)), in [0, 1]."""
        return jnp.sqrt(jax.nn.sigmoid(self.logsnr(t)))

    def sigma(self, t: jax.Array) -> jax.Array:
        """Returns sqrt(sigmoid(-logsnr)), in [0, 1]."""
        return jnp.sqrt(jax.nn.sigmoid(-self.logsnr(t)))


@dataclasses.dataclass(frozen=True)
class Cosine(VariancePreserving):
    """The cosine schedule, logsnr(t) = -2 log tan(a t + b), from logsnr_max to logsnr_min.

    The angle is rescaled, not clipped: alpha(1) is 4.5e-5 with the default ends, not 0.
    Salimans & Ho (2022, arXiv:2202.00512), section 2 and their released schedule.

    Attributes:
      logsnr_min: logsnr at t = 1.
      logsnr_max: logsnr at t = 0.
    """

    logsnr_min: float = option(number(-100, 0), -20.0)
    logsnr_max: float = option(number(0, 100), 20.0)

    def __post_init__(self) -> None:
        check_options(self)
        check_rises(self, "logsnr_min", "logsnr_max")

    @property
    def _angle(self) -> tuple[float, float]:
        """The coefficients (a, b) of the angle a t + b."""
        b = math.atan(math.exp(-self.logsnr_max / 2))
        return math.atan(math.exp(-self.logsnr_min / 2)) - b, b

    def logsnr(self, t: jax.Array) -> jax.Array:
        """Returns -2 log tan(a t + b)."""
        a, b = self._angle
        return -2 * jnp.log(jnp.tan(a * t + b))

    def time(self, logsnr: jax.Array) -> jax.Array:
        """Returns (arctan(exp(-logsnr / 2)) - b) / a."""
        a, b = self._angle
        return (jnp.arctan(jnp.exp(-logsnr / 2)) - b) / a


class BetaTable(VariancePreserving):
    """A schedule from a table of betas, alpha^2 = prod(1 - beta_k), k at t = (k + 1) / num_steps.

    logsnr is linear in t between the entries. At t = 0 it is 20, above the first entry of every
    table.

    Attributes:
      betas: share of the variance that each step replaces by noise, float64 (num_steps,).
    """

    betas: np.ndarray

    def logsnr(self, t: jax.Array) -> jax.Array:
        """Returns the logsnr of the table, interpolated linearly in t."""
        times, logsnrs = self._table()
        return jnp.interp(t, times, logsnrs)

    def time(self, logsnr: jax.Array) -> jax.Array:
        """Returns the inverse of `logsnr`; 0 or 1 beyond the ends of the table."""
        times, logsnrs = self._table()
        return jnp.interp(logsnr, logsnrs[::-1], times[::-1])

    def _table(self) -> tuple[jax.Array, jax.Array]:
        """Returns the times of the table and their logsnr, in float64 if that is enabled."""
        logsnr = _table_logsnr(self)
        return jnp.asarray(np.linspace(0.0, 1.0, len(logsnr))), jnp.asarray(logsnr)


@functools.cache
def _table_logsnr(schedule: BetaTable) -> np.ndarray:
    """Returns the logsnr at t = 0, 1/T, ..., 1 in float64."""
    with np.errstate(divide="ignore"):  # The last beta may be 1.
        log_alpha_bar = np.cumsum(np.log1p(-schedule.betas))
    logsnr = log_alpha_bar - np.log(-np.expm1(log_alpha_bar))
    return np.concatenate([[20.0], np.where(np.isneginf(logsnr), -20.0, logsnr)])


@dataclasses.dataclass(frozen=True)
class LinearBeta(BetaTable):
    """The DDPM schedule: beta_k^(1/power) is linear in k, and beta goes from beta_min to beta_max.

    Power 1 is Ho et al. (2020, arXiv:2006.11239). Power 2 ("scaled linear", 0.00085 to 0.012) is
    Stable Diffusion's, which ends at alpha(1) = 0.068. With `zero_snr`, alpha is shifted and scaled
    so that its last entry is 0 and its first the same (Lin et al. 2024, arXiv:2305.08891,
    algorithm 1); as logsnr is finite here, alpha(1) is 4.5e-5.

    Attributes:
      beta_min: the first beta.
      beta_max: the last beta.
      num_steps: number of betas.
      power: power of the line between the ends.
      zero_snr: whether the schedule is changed to end at pure noise.
    """

    beta_min: float = option(RATE, 1e-4)
    beta_max: float = option(RATE, 0.02)
    num_steps: int = option(whole(2, high=MAX_STEPS), 1000)
    power: int = option(whole(1, high=8), 1)
    zero_snr: bool = False

    def __post_init__(self) -> None:
        check_options(self)
        check_rises(self, "beta_min", "beta_max")

    @property
    def betas(self) -> np.ndarray:
        """The num_steps betas, from beta_min to beta_max."""
        ends = self.beta_min ** (1 / self.power), self.beta_max ** (1 / self.power)
        betas = np.linspace(*ends, self.num_steps) ** self.power
        if not self.zero_snr:
            return betas
        alpha = np.sqrt(np.cumprod(1 - betas))
        power = ((alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])) ** 2
        return 1 - power / np.concatenate([[1.0], power[:-1]])


@dataclasses.dataclass(frozen=True)
class CosineBeta(BetaTable):
    """The iDDPM schedule: alpha^2 = f(t) / f(0), f(t) = cos^2((t + offset) / (1 + offset) pi / 2).

    Nichol & Dhariwal (2021, arXiv:2102.09672), equation 17. The limit beta_max changes only the
    last entry: alpha(1) is 4.9e-5 with the defaults, not 0.

    Attributes:
      offset: noise at the first step, so that it is not too small.
      beta_max: largest beta.
      num_steps: number of betas.
    """

    offset: float = option(number(0, 1), 0.008)
    beta_max: float = option(RATE, 0.999)
    num_steps: int = option(whole(2, high=MAX_STEPS), 1000)

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def betas(self) -> np.ndarray:
        """The betas 1 - f(t_k+1) / f(t_k), at most beta_max."""
        t = np.linspace(0.0, 1.0, self.num_steps + 1)
        f = np.cos((t + self.offset) / (1 + self.offset) * math.pi / 2) ** 2
        return np.minimum(1 - f[1:] / f[:-1], self.beta_max)


@dataclasses.dataclass(frozen=True)
class Karras:
    """EDM's schedule: alpha = 1, sigma(t)^(1/rho) linear in t from sigma_min to sigma_max.

    Karras et al. (2022, arXiv:2206.00364), equation 5; times in equal steps give their grid.

    Attributes:
      sigma_min: noise level at t = 0.
      sigma_max: noise level at t = 1.
      rho: power of the line; large values make short steps at low noise.
    """

    sigma_min: float = option(number(1e-6, 1e6), 0.002)
    sigma_max: float = option(number(1e-6, 1e6), 80.0)
    rho: float = option(number(1, 100), 7.0)

    def __post_init__(self) -> None:
        check_options(self)
        check_rises(self, "sigma_min", "sigma_max")

    def alpha(self, t: jax.Array) -> jax.Array:
        """Returns 1 at all times."""
        return jnp.ones_like(t)

    def sigma(self, t: jax.Array) -> jax.Array:
        """Returns (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (low + t * (high - low)) ** self.rho

    def logsnr(self, t: jax.Array) -> jax.Array:
        """Returns -2 log sigma(t)."""
        return -2 * jnp.log(self.sigma(t))

    def time(self, logsnr: jax.Array) -> jax.Array:
        """Returns the inverse of `logsnr`, outside [0, 1] for levels outside the schedule."""
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        return (jnp.exp(-logsnr / (2 * self.rho)) - low) / (high - low)


@dataclasses.dataclass(frozen=True)
class RectifiedFlow:
    """The rectified flow: alpha = 1 - t', sigma = t', t' = shift t / (1 + (shift - 1) t).

    Liu et al. (2022, arXiv:2209.03003); the shift is Esser et al. (2024, arXiv:2403.03206),
    equation 23. logsnr is +inf at t = 0 and -inf at t = 1.

    Attributes:
      shift: above 1, equal steps in t have more of their times at high noise.
    """

    shift: float = option(number(1e-3, 1e3), 1.0)

    def __post_init__(self) -> None:
        check_options(self)

    def alpha(self, t: jax.Array) -> jax.Array:
        """Returns 1 - t'."""
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: jax.Array) -> jax.Array:
        """Returns t' = shift t / (1 + (shift - 1) t)."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def logsnr(self, t: jax.Array) -> jax.Array:
        """Returns 2 log((1 - t') / t'); +inf at t = 0 and -inf at t = 1."""
        return 2 * (jnp.log1p(-t) - jnp.log(self.shift * t))

    def time(self, logsnr: jax.Array) -> jax.Array:
        """Returns the inverse of `logsnr`."""
        return jax.nn.sigmoid(-logsnr / 2 - math.log(self.shift))


SCHEDULES = {
    "cosine": Cosine,
    "ddpm": LinearBeta,
    "iddpm": CosineBeta,
    "karras": Karras,
    "rectified_flow": RectifiedFlow,
}


def check_rises(schedule: Schedule, low: str, high: str) -> None:
    """Raises OptionError unless one attribute of a schedule is smaller than another."""
    least, largest = getattr(schedule, low), getattr(schedule, high)
    if least >= largest:
        raise OptionError(low, f"is {least}, and {high} {largest}; expected {low} < {high}")


def expand(t: Time, x: Image) -> jax.Array:
    """Returns t with trailing axes of size 1, so that it broadcasts against x from the left."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def add_noise(schedule: Schedule, x: Image, eps: Image, t: Time) -> Image:
    """Returns z_t = alpha(t) x + sigma(t) eps."""
    return expand(schedule.alpha(t), x) * x + expand(schedule.sigma(t), x) * eps
