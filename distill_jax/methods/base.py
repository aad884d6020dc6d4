"""What a method is: phases, each a network to train and a pure loss. One loop runs them all."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import mean_squared
from distill_jax.diffusion.schedule import Schedule
from distill_jax.diffusion.trained import Ddim, Guidance, Sampler, Trained
from distill_jax.diffusion.weighting import WEIGHTINGS
from distill_jax.runtime.options import check_options
from distill_jax.runtime.trees import traced as traced  # Methods take it from here.
from distill_jax.typing import Batch, Cond, Image, Time

Metrics = dict[str, jax.Array]


class Nets(NamedTuple):
    """The networks of one iteration by role."""

    student: Denoiser
    teacher: Denoiser | None = None
    fake: Denoiser | None = None


class Phase(NamedTuple):
    """The updates of one network in one iteration.

    `loss(method, key, batch, nets) -> (scalar, metrics)` is pure; the gradient is taken in the
    parameters of the role `trains` alone, and every other network is a constant.

    Attributes:
      trains: "student" or "fake".
      loss: see above.
      updates_per_iteration: updates in one iteration, each with a batch and a key of its own.
      variants: programs that take turns: iteration n runs number n mod variants, and where there
        are several the loss gets that number as a fifth argument. For losses whose arrays change
        their shape.
    """

    trains: str
    loss: Callable[..., tuple[jax.Array, Metrics]]
    updates_per_iteration: int = 1
    variants: int = 1


class Method(abc.ABC):
    """A paper's training losses, and the sampler of what they train.

    A method is a frozen dataclass and a pytree. Numbers that differ between the rounds of a chain
    (num_steps, w_range) are leaves, so they are traced and all rounds share a compiled update.

    Attributes:
      num_steps: network calls of the sampler.
      w_range: (smallest, largest) guidance strength the network takes as an input, None when it
        takes none.
      fixed_w: the guidance strength in the weights of a network that takes none.
      label_dropout: probability of the null condition in training; 0 trains none.
      all_times: whether the network is trained at all times in [0, 1], or on its grid only.
      clip_target: whether the targets are clipped to the bounds of the data.
      resolutions: of the square images that the network is trained on, () for the data's own only.
      needs_teacher: whether a finished network must come before this method.
      data_free: whether it sees no images: batch.x is None.
      needs_features: whether it looks into the middle of its networks.
      has_discriminator: whether its fake network has a head that tells data from samples.
      discriminator: which head that is, a name in models.DISCRIMINATORS.
      parameterizations: the ones it works with, () for all.
    """

    num_steps: Any
    w_range: Any = None
    fixed_w: float = 0.0
    label_dropout: float = 0.0
    all_times: bool = False
    clip_target: bool = False
    resolutions: tuple[int, ...] = ()
    needs_teacher: bool = True
    data_free: bool = False
    needs_features: bool = False
    has_discriminator: bool = False
    discriminator: str = "pooled"
    parameterizations: tuple[str, ...] = ()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of one iteration, in order; unless redefined, the student's by `loss`."""
        return (Phase("student", type(self).loss),)

    def sampler(self, schedule: Schedule) -> Sampler:
        """The sampler of the finished network, on the times of the schedule; DDIM by default."""
        return Ddim(self.num_steps)

    def check(self, teacher: Trained | None) -> None:
        """Raises ValueError when an option breaks its rule, or the teacher does not fit."""
        check_options(self)

    @property
    def guides(self) -> bool:
        """Whether it needs a null condition to guide against."""
        return self.w_range is not None

    def trained(self, schedule: Schedule) -> Trained:
        """The record that the finished network keeps of its training."""
        guidance = Guidance(self.w_range, self.fixed_w, self.label_dropout > 0)
        sampler, saturated = self.sampler(schedule), self.clip_target
        return Trained(sampler, guidance, self.all_times, saturated, self.resolutions)


def weighted_mse(weighting: str, denoiser: Denoiser, x_hat: Image, x: Image, t: Time) -> jax.Array:
    """Mean over the batch of weight(logsnr(t)) * mean((x_hat - x)^2).

    Salimans & Ho (2022), section 4. All parameterizations are compared in x; the weight decides
    whether that is the error of x, eps or v.
    """
    weight = WEIGHTINGS[weighting](denoiser.schedule.logsnr(t))
    return jnp.mean(weight * mean_squared(x_hat, x))


def saturating_target(target: Image, x_hat: Image) -> Image:
    """The target, with x_hat in its place where a sampler that clips cannot tell the two apart.

    A clipped target of -1 is met by every x_hat <= -1, one of 1 by every x_hat >= 1. A plain
    squared error pulls those back to the bound; half of the errors that remain then lie inside it,
    the sampler's clipping keeps just that half, and every round of a chain learns the bias of the
    round before: samples lose contrast. Ours; the reference clips in the sampler alone.
    """
    beyond = (jnp.abs(target) >= 1 - 1e-6) & (x_hat * jnp.sign(target) >= 1)
    return jnp.where(beyond, jax.lax.stop_gradient(x_hat), target)


def drop_labels(key: jax.Array, batch: Batch, probability: float) -> dict[str, jax.Array]:
    """The conditions of the batch, each example's replaced by the null ones with a probability.

    Ho & Salimans (2022, arXiv:2207.12598), Algorithm 1.
    """
    drop = jax.random.bernoulli(key, probability, (batch.size,))
    return {
        name: jnp.where(drop.reshape(-1, *(1,) * (value.ndim - 1)), batch.null[name], value)
        for name, value in batch.cond.items()
    }


def draw_w(key: jax.Array, w_range: tuple, like: Image) -> Time:
    """w ~ U[w_range], one per example (Meng et al. 2023, Algorithm 1)."""
    low, high = w_range
    return low + (high - low) * jax.random.uniform(key, like.shape[:1], like.dtype)


def with_w(key: jax.Array, cond: Cond, w_range: tuple | None, like: Image) -> dict[str, jax.Array]:
    """The conditions and, for a network that takes w, strengths drawn from `w_range` as "w"."""
    return dict(cond) if w_range is None else {**cond, "w": draw_w(key, w_range, like)}
