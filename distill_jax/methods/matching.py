"""What the methods that match distributions share: a generator against a teacher and a fake.

The fake is a denoiser that is trained on the generator's images while those change. Where it
agrees with the teacher at all noise levels, the generator's distribution is the teacher's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser, guided
from distill_jax.diffusion.noise_levels import NOISE_LEVELS, level_of, time_of
from distill_jax.diffusion.prediction import Prediction
from distill_jax.diffusion.samplers import renoise
from distill_jax.diffusion.schedule import Schedule, add_noise, expand
from distill_jax.diffusion.trained import Renoise
from distill_jax.methods.base import weighted_mse
from distill_jax.typing import Batch, Cond, Image, Time

MIN_RESIDUAL = 1e-5  # The least mean |x - real| that a gap is divided by; SiD's.


class Noisy(NamedTuple):
    """z = alpha(t) x + sigma(t) eps."""

    z: Image
    t: Time
    eps: Image


def generate(
    student: Denoiser, eps: Image, t: jax.Array | float, cond: Cond, key: jax.Array | None = None
) -> Image:
    """student(sigma(t) eps, t, cond).x: images of one call.

    The signal that z_t should have is left out, for there is none yet; at a level of 2.5 it has
    a share of 4 % in the variance of z_t (sigma_data 0.5).
    eps is standard normal noise, t one time for all, key that of dropout.
    """
    t = jnp.broadcast_to(jnp.asarray(t, eps.dtype), eps.shape[:1])
    return student(expand(student.schedule.sigma(t), eps) * eps, t, cond, key).x


def on_path(
    key: jax.Array, student: Denoiser, batch: Batch, times: tuple
) -> tuple[Image, jax.Array | int]:
    """Images of a random call, the same for all, on the student's own path to it, and its number.

    The "backward simulation" of Yin et al. (2024, arXiv:2405.14867), see samplers.renoise: the
    gradient comes from the last call only. `times` are those of all calls, falling.
    """
    k_eps, k_step, k_path = jax.random.split(key, 3)
    eps = jax.random.normal(k_eps, (batch.size, *student.shape))
    # 0 and not an array for one call, so that no loop is compiled.
    step = jax.random.randint(k_step, (), 0, len(times)) if len(times) > 1 else 0
    z = renoise(k_path, student, eps, batch.cond, times, stop=step)
    return student(z, jnp.full(len(z), jnp.asarray(times)[step]), batch.cond).x, step


def one_call(schedule: Schedule, level: float) -> Renoise:
    """The sampler that calls a generator once, at a noise level."""
    with jax.ensure_compile_time_eval():
        return Renoise((float(time_of(schedule, level)),))


def diffuse(key: jax.Array, schedule: Schedule, x: Image, levels: tuple) -> Noisy:
    """The images at noise levels drawn from `levels`: a name in NOISE_LEVELS and its bounds."""
    distribution, low, high = levels
    k_t, k_eps = jax.random.split(key)
    t = NOISE_LEVELS[distribution](k_t, schedule, x.shape[:1], low, high)
    eps = jax.random.normal(k_eps, x.shape, x.dtype)
    return Noisy(add_noise(schedule, x, eps, t), t, eps)


def denoising_loss(
    key: jax.Array, fake: Denoiser, x: Image, cond: Cond, levels: tuple, weighting: str
) -> jax.Array:
    """weight(logsnr) |f(z_t, t, c) - x|^2: what teaches the fake the generator's images x.

    Dropout is on in the fake, see denoiser.without_dropout; `levels` as in `diffuse`, `weighting` a
    name in WEIGHTINGS.
    """
    k_z, k_dropout = jax.random.split(key)
    z, t, _ = diffuse(k_z, fake.schedule, x, levels)
    return weighted_mse(weighting, fake, fake(z, t, cond, k_dropout).x, x, t)


def scaled(denoiser: Denoiser, kappa: float, null: Cond) -> Denoiser:
    """f(null) + kappa (f(c) - f(null)), and f(c) itself, in half the work, at kappa = 1."""
    return denoiser if kappa == 1 else guided(denoiser, kappa - 1, null)


def x_difference(a: Prediction, b: Prediction, schedule: Schedule, t: Time) -> Image:
    """a.x - b.x of two predictions from the same z, without cancellation.

    Both recombine to z, so it is (sigma / alpha) (b.eps - a.eps) too. Below the level 1 that form
    is the accurate one: at 0.002 the two x agree in most of their digits. The truth,
    Prediction(x, eps), is a prediction as well.
    """
    level = expand(level_of(schedule, t), a.x)
    # Where it is not taken the factor is 1, so that a flow's t = 1 cannot make the gradient NaN.
    by_eps = jnp.where(level < 1, level, 1.0) * (b.eps - a.eps)
    return jnp.where(level < 1, by_eps, a.x - b.x)


def normalised(a: Image, residual: Image) -> Image:
    """a / max(mean_pixels |residual|, MIN_RESIDUAL), without the gradient of the normaliser."""
    mean = jnp.mean(jnp.abs(residual), axis=tuple(range(1, residual.ndim)), keepdims=True)
    return a / jax.lax.stop_gradient(jnp.maximum(mean, MIN_RESIDUAL))


def score_gap(gap: Image, residual: Image) -> jax.Array:
    """Mean of |real - fake| / mean_pixels |real - x|, the two arguments: how far there is to go.

    A pure number that falls as the generator nears the teacher. It is 0 at the start too, while
    the fake still is the teacher, and it is too small by what the fake lags behind: look at its
    trend after the first hundreds of iterations, not at one value.
    """
    return jnp.mean(jnp.abs(normalised(gap, residual)))


def dmd_loss(x: Image, real: Image, fake: Image) -> jax.Array:
    """0.5 mean |x - sg(x - g)|^2, whose gradient in x is g over the number of elements.

        g = (fake - real) / max(mean_pixels |x - real|, MIN_RESIDUAL)

    Yin et al. (2024, arXiv:2405.14867; the normaliser is that of arXiv:2311.18828). sg stops the
    gradient, so there is none through the two networks. Without the normaliser,
    g alpha^2 / sigma^2 is the gradient of KL(generator | teacher) at that noise level.

    Args:
      x: the generator's images.
      real: the teacher's x at a noisy x.
      fake: the fake's x there.
    """
    return push(x, normalised(fake - real, x - real))


def push(x: Image, g: Image) -> jax.Array:
    """0.5 mean |x - sg(x - g)|^2, whose gradient in x is g over the number of elements."""
    return 0.5 * jnp.mean(jnp.square(x - jax.lax.stop_gradient(x - g)))


def discriminator_loss(real: Time, fake: Time) -> jax.Array:
    """Mean softplus(fake) + mean softplus(-real) of the logits of data and samples."""
    return jnp.mean(jax.nn.softplus(fake)) + jnp.mean(jax.nn.softplus(-real))


def generator_gan_loss(fake: Time) -> jax.Array:
    """Mean softplus(-fake): samples that the discriminator takes for data."""
    return jnp.mean(jax.nn.softplus(-fake))
