"""Exact denoisers of simple data: teachers without training, and the truth that tests compare with.

Data of standard deviation s around a mean m are seen through z_t = alpha x + sigma eps, whose
variance is n^2 = alpha^2 s^2 + sigma^2. Then, with no small number below any fraction,

    score        = (alpha m - z_t) / n^2
    E[x | z_t]   = m - alpha s^2 score
    E[eps | z_t] = -sigma score

and for a mixture m is the mean of the components' means, weighted by how likely each made z_t.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import Prediction
from distill_jax.diffusion.samplers import ddim_step, walk
from distill_jax.diffusion.schedule import Schedule, expand
from distill_jax.typing import Cond, Image, Time

Numbers = Sequence | np.ndarray | jax.Array


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Equally likely Gaussians of one standard deviation, each of a class.

    Attributes:
      means: of the components, (k, d); they are called with images (b, *s) of d numbers each.
      std: of every component in every direction, above 0.
      labels: their classes (k,), 0 .. num_classes - 1.
    """

    means: Numbers
    std: float
    labels: Numbers

    @property
    def num_classes(self) -> int:
        """Which is also the null label."""
        return int(np.max(np.asarray(self.labels))) + 1

    def denoiser(self, schedule: Schedule) -> Denoiser:
        """E[x | z_t, label] and E[eps | z_t, label].

        cond "label" (b,) picks the components of a class; the null label has all of them, and so
        has a cond without labels.
        """

        def predict(z: Image, t: Time, cond: Cond, key: jax.Array | None = None) -> Prediction:
            means, std = jnp.asarray(self.means, z.dtype), jnp.asarray(self.std, z.dtype)
            return mixture_prediction(schedule, z, t, means, std, self.log_weights(z, cond))

        return Denoiser(schedule, predict, (1, 1, np.asarray(self.means).shape[1]))

    def log_weights(self, z: Image, cond: Cond) -> jax.Array:
        """Of every component in every example, (b, k): 0 where the label has it, or else -inf."""
        label = cond.get("label", jnp.full(z.shape[:1], self.num_classes))
        return jnp.where(self._has(label), 0.0, -jnp.inf).astype(z.dtype)

    def sample(self, rng: np.random.Generator, label: np.ndarray) -> np.ndarray:
        """Points (n, d) of these labels (n,), of which the null label is one."""
        draws = rng.random((len(label), len(self.labels)))
        chosen = np.argmax(self._has(label) * draws, axis=1)
        means = np.asarray(self.means, np.float64)[chosen]
        return means + self.std * rng.normal(size=means.shape)

    def _has(self, label: np.ndarray | jax.Array) -> np.ndarray | jax.Array:
        """Which components the labels have, (n, k)."""
        label = label[:, None]
        return (label == np.asarray(self.labels)) | (label == self.num_classes)


def mixture_prediction(
    schedule: Schedule,
    z: Image,
    t: Time,
    means: jax.Array,
    std: jax.Array | float,
    log_weights: jax.Array,
) -> Prediction:
    """E[x | z_t] and E[eps | z_t] for Gaussians N(means (k, d), std^2) of these weights.

    Differentiable in everything.

    Args:
      schedule: of t.
      z: images (b, *s) of d numbers each.
      t: in [0, 1], both ends included.
      means: (k, d).
      std: above 0.
      log_weights: (b, k), -inf for a component that an example does not have; only their
        differences matter.
    """
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    gaps = z.reshape(len(z), 1, -1) - alpha[..., None] * means
    variance = (alpha * std) ** 2 + sigma**2
    logits = log_weights - jnp.sum(gaps**2, axis=-1) / (2 * variance)
    # No matrix product: accelerators would round its factors.
    mean = jnp.sum(jax.nn.softmax(logits, axis=-1)[..., None] * means, axis=1)
    mean, std = mean.reshape(z.shape).astype(z.dtype), jnp.asarray(std, z.dtype)
    alpha, sigma = expand(schedule.alpha(t), z), expand(schedule.sigma(t), z)
    score = (alpha * mean - z) / ((alpha * std) ** 2 + sigma**2)
    return Prediction(mean - alpha * std**2 * score, -sigma * score)


def ring() -> Mixture:
    """The toy of the mixture configs: eight modes on a circle, two to a class, a right angle apart.

    Four classes of two well separated modes each in the plane, std 0.12. The radius, 0.55, keeps
    samples within [-1, 1], but for one in some 50,000. What a denoiser makes of pure noise in one
    call at sigma = 2.5, where one-call students start, is 0.255 from the data in sliced
    Wasserstein-2 distance.
    """
    angles = (np.arange(8) + 0.5) * math.pi / 4
    means = 0.55 * np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return Mixture(means, 0.12, np.array([0, 1, 0, 1, 2, 3, 2, 3]))


def ode_map(
    denoiser: Denoiser,
    z: Image,
    cond: Cond,
    t_from: jax.Array | float,
    t_to: jax.Array | float,
    num_steps: jax.Array | int,
) -> Image:
    """The z at t_to on the probability flow through z at t_from, by Heun's method.

        z_s = sigma_s / sigma_t z_t + (alpha_s - alpha_t sigma_s / sigma_t) (x_t + x_s) / 2

    with x_s predicted where the DDIM step lands: an error of second order, where DDIM's is of
    first. Finite at both ends of every schedule. BOOT's signal at t_to, y = (z - sigma eps) / alpha
    for the noise eps that z started as, is the truth that its student is compared with (Gu et al.
    2023, arXiv:2306.05544).

    Args:
      denoiser: exact, or any other.
      z: at t_from; sigma is not multiplied on here.
      cond: the conditions of every call.
      t_from: where z is, above t_to.
      t_to: where to go, 0 for the clean image.
      num_steps: of equal length in t, two calls each.
    """
    schedule = denoiser.schedule

    def grid(i: Time) -> tuple[Time, Time]:
        return tuple(t_from + (t_to - t_from) * j / num_steps for j in (i, i + 1))

    def heun(denoiser: Denoiser, z: Image, t: Time, s: Time, cond: Cond) -> Image:
        first = denoiser(z, t, cond)
        x = (first.x + denoiser(ddim_step(schedule, first, s), s, cond).x) / 2
        ratio = schedule.sigma(s) / schedule.sigma(t)
        gain = schedule.alpha(s) - schedule.alpha(t) * ratio
        return expand(ratio, z) * z + expand(gain, z) * x

    return walk(denoiser, z, cond, grid, num_steps, heun)
