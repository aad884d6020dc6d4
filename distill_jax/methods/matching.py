"""Shared losses of the methods that match distributions with a teacher and a fake network.

The fake is a denoiser that is trained on the generator's images while the generator changes. If it
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
from distill_jax.diffusion.trained import Renoise, Trained
from distill_jax.methods import checks
from distill_jax.methods.base import Loss, Method, augmented, weighted_mse
from distill_jax.runtime.options import OptionError
from distill_jax.typing import Batch, Cond, Image, Time

MIN_RESIDUAL = 1e-5  # Smallest normaliser mean |x - real|, as in SiD.


class Adversarial(Method):
    """Base class of methods whose fake may have a discriminator, for which they need data.

    Attributes:
      gan_weight: weight of the student's GAN loss; with 0 there is no discriminator and no data.
      discriminator_weight: weight of the discriminator's loss in the fake's phase.
      fake_levels: noise levels of the discriminator's images in the fake's phase.
    """

    gan_weight: float
    discriminator_weight: float
    fake_levels: tuple

    def check(self, teacher: Trained | None) -> None:
        super().check(teacher)
        checks.discriminator(self)

    @property
    def data_free(self) -> bool:
        return self.gan_weight == 0

    @property
    def has_discriminator(self) -> bool:
        return self.gan_weight > 0

    def with_discriminator(
        self,
        loss: jax.Array,
        k_real: jax.Array,
        k_fake: jax.Array,
        batch: Batch,
        x: Image,
        fake: Denoiser,
    ) -> Loss:
        """Returns the fake's loss + discriminator_weight * d_loss, if there is a discriminator.

        Data and samples x have the conditions of the batch. Equal keys give them equal noise.
        """
        if not self.has_discriminator:
            return loss, {}
        real, made = (
            logits(key, fake, images, batch.cond, self.fake_levels)
            for key, images in ((k_real, batch.x), (k_fake, x))
        )
        d_loss = discriminator_loss(real, made)
        return loss + self.discriminator_weight * d_loss, {"discriminator_loss": d_loss}


class Noisy(NamedTuple):
    """Noisy images z = alpha(t) x + sigma(t) eps, their times and their noise."""

    z: Image
    t: Time
    eps: Image


def generate(
    student: Denoiser, eps: Image, t: jax.Array | float, cond: Cond, key: jax.Array | None = None
) -> Image:
    """Generates images in one call, student(sigma(t) eps, t, cond).x.

    The input lacks the signal alpha x of a true z_t. At a noise level of 2.5 the signal is 4 % of
    the variance of z_t (sigma_data 0.5).

    Args:
      student: the generator.
      eps: standard normal noise.
      t: one time for all images.
      cond: conditions of the images.
      key: key of dropout; None switches it off.
    """
    t = jnp.broadcast_to(jnp.asarray(t, eps.dtype), eps.shape[:1])
    return student(expand(student.schedule.sigma(t), eps) * eps, t, cond, key).x


def on_path(
    key: jax.Array,
    student: Denoiser,
    batch: Batch,
    times: tuple,
    k_dropout: jax.Array | None = None,
) -> tuple[Image, jax.Array | int]:
    """Returns the student's images at one random call of its sampler, and the number of that call.

    The calls before it run without a gradient: the "backward simulation" of Yin et al. (2024,
    arXiv:2405.14867), see samplers.renoise.

    Args:
      key: key of noise, call and path.
      student: the generator.
      batch: conditions of the images.
      times: falling times of all calls.
      k_dropout: key of dropout in the call; None switches it off.
    """
    k_eps, k_step, k_path = jax.random.split(key, 3)
    eps = jax.random.normal(k_eps, (batch.size, *student.shape))
    # A Python 0 for a single call, so that no loop is compiled.
    step = jax.random.randint(k_step, (), 0, len(times)) if len(times) > 1 else 0
    z = renoise(k_path, student, eps, batch.cond, times, stop=step)
    return student(z, jnp.full(len(z), jnp.asarray(times)[step]), batch.cond, k_dropout).x, step


def one_call(schedule: Schedule, level: float) -> Renoise:
    """Returns the sampler that calls a generator once, at a noise level.

    Raises:
      OptionError: for a level outside the schedule's.
    """
    with jax.ensure_compile_time_eval():
        t, largest = float(time_of(schedule, level)), float(level_of(schedule, jnp.ones(())))
    if level > largest * 1.001 or t <= 0:
        raise OptionError(
            "sigma_init", f"is {level}; expected a noise level of the schedule, up to {largest:.3g}"
        )
    return Renoise((t,))


def diffuse(key: jax.Array, schedule: Schedule, x: Image, levels: tuple) -> Noisy:
    """Adds noise at random levels; `levels` is a name in NOISE_LEVELS, and lowest and highest."""
    distribution, low, high = levels
    k_t, k_eps = jax.random.split(key)
    t = NOISE_LEVELS[distribution](k_t, schedule, x.shape[:1], low, high)
    eps = jax.random.normal(k_eps, x.shape, x.dtype)
    return Noisy(add_noise(schedule, x, eps, t), t, eps)


def denoising_loss(
    key: jax.Array,
    fake: Denoiser,
    x: Image,
    cond: Cond,
    levels: tuple,
    weighting: str,
    augment: float = 0.0,
) -> jax.Array:
    """Returns the fake's denoising loss weight(logsnr) |f(z_t, t, c) - x|^2 on generated images x.

    Dropout is on in the fake, see denoiser.without_dropout. `levels` is as in `diffuse`, and
    `weighting` is a name in WEIGHTINGS. `augment` is the probability in `augmented`.
    """
    k_z, k_dropout = jax.random.split(key)
    x, cond = augmented(jax.random.fold_in(key, 1), x, cond, augment)
    z, t, _ = diffuse(k_z, fake.schedule, x, levels)
    return weighted_mse(weighting, fake, fake(z, t, cond, k_dropout).x, x, t)


def scaled(denoiser: Denoiser, kappa: float, null: Cond) -> Denoiser:
    """Returns the denoiser f(null) + kappa (f(c) - f(null)); at kappa = 1 f itself."""
    return denoiser if kappa == 1 else guided(denoiser, kappa - 1, null)


def x_difference(a: Prediction, b: Prediction, schedule: Schedule, t: Time) -> Image:
    """Returns a.x - b.x of two predictions from the same z, without cancellation.

    Both predictions recombine to z, so the difference is also (sigma / alpha) (b.eps - a.eps).
    Below a noise level of 1 that form is more accurate: at 0.002 the two x agree in most digits.
    The pair (x, eps) that z was made from is a valid prediction too.
    """
    level = expand(level_of(schedule, t), a.x)
    # The factor of the unused branch is 1, so that a flow's t = 1 gives no NaN gradient.
    by_eps = jnp.where(level < 1, level, 1.0) * (b.eps - a.eps)
    return jnp.where(level < 1, by_eps, a.x - b.x)


def normalised(a: Image, residual: Image) -> Image:
    """Returns a / sg(max(mean_pixels |residual|, MIN_RESIDUAL)), sg stopping the gradient."""
    mean = jnp.mean(jnp.abs(residual), axis=tuple(range(1, residual.ndim)), keepdims=True)
    return a / jax.lax.stop_gradient(jnp.maximum(mean, MIN_RESIDUAL))


def score_gap(gap: Image, residual: Image) -> jax.Array:
    """Returns the mean of |gap| / mean_pixels |residual|, the distance from generator to teacher.

    gap is real - fake and residual is real - x. The metric has no unit and falls as the generator
    approaches the teacher. It is also 0 at the start, while the fake equals the teacher, and it is
    too small while the fake lags behind. Watch its trend after the first hundreds of iterations.
    """
    return jnp.mean(jnp.abs(normalised(gap, residual)))


def dmd_loss(x: Image, real: Image, fake: Image) -> jax.Array:
    """Returns the DMD loss 0.5 mean |x - sg(x - g)|^2, whose gradient in x is g over its size.

        g = (fake - real) / max(mean_pixels |x - real|, MIN_RESIDUAL)

    Yin et al. (2024, arXiv:2405.14867; the normaliser is that of arXiv:2311.18828). sg stops the
    gradient, also through the two networks. Without the normaliser, g alpha^2 / sigma^2 is the
    gradient of KL(generator | teacher) at that noise level.

    Args:
      x: images of the generator.
      real: the teacher's x for the noisy images.
      fake: the fake's x for the same noisy images.
    """
    return push(x, normalised(fake - real, x - real))


def push(x: Image, g: Image) -> jax.Array:
    """Returns 0.5 mean |x - sg(x - g)|^2, whose gradient in x is g over the number of elements."""
    return 0.5 * jnp.mean(jnp.square(x - jax.lax.stop_gradient(x - g)))


def logits(key: jax.Array, fake: Denoiser, x: Image, cond: Cond, levels: tuple) -> Time:
    """Returns the discriminator's logits for images x with noise; `levels` is as in `diffuse`."""
    z, t, _ = diffuse(key, fake.schedule, x, levels)
    return fake.discriminator(z, t, cond)


def discriminator_loss(real: Time, fake: Time) -> jax.Array:
    """Returns mean softplus(fake) + mean softplus(-real) for logits of samples and data."""
    return jnp.mean(jax.nn.softplus(fake)) + jnp.mean(jax.nn.softplus(-real))


def generator_gan_loss(fake: Time) -> jax.Array:
    """Returns mean softplus(-fake), which is small if samples are classified as data."""
    return jnp.mean(jax.nn.softplus(-fake))
