"""The base class of methods: a list of phases, each a role to train and a pure loss."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.diffusion.augmentation import AUGMENT, augment
from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import mean_squared
from distill_jax.diffusion.schedule import Schedule
from distill_jax.diffusion.trained import Ddim, Guidance, Sampler, Trained
from distill_jax.diffusion.weighting import WEIGHTINGS
from distill_jax.runtime.options import check_options
from distill_jax.runtime.trees import traced as traced  # Methods import it from here.
from distill_jax.typing import Batch, Cond, Image, Time

Metrics = dict[str, jax.Array]
Loss = tuple[jax.Array, Metrics]  # What is minimised, and what is logged beside it.


class Nets(NamedTuple):
    """The networks of one iteration by role, and the teacher's sampler for methods that draw.

    `changed` is the teacher with the student's adapters, for a stage `onto` that keeps its images.
    """

    student: Denoiser
    teacher: Denoiser | None = None
    fake: Denoiser | None = None
    sampler: Sampler | None = None
    changed: Denoiser | None = None


class Phase(NamedTuple):
    """The updates of one network in one iteration.

    `loss(method, key, batch, nets) -> (scalar, metrics)` is pure. The gradient is taken only in the
    parameters of the role `trains`; every other network is a constant.

    Attributes:
      trains: role that is trained, "student" or "fake".
      loss: the loss function.
      updates_per_iteration: number of updates per iteration, each with its own batch and key.
      variants: number of compiled programs, for losses that use several image sizes. Iteration n
        runs program n mod variants; if there are several, the loss takes that number as a fifth
        argument.
    """

    trains: str
    loss: Callable[..., Loss]
    updates_per_iteration: int = 1
    variants: int = 1


class Method(abc.ABC):
    """The training losses of a paper, and the sampler of the network that they train.

    A method is a frozen dataclass and a pytree. Numbers that differ between the rounds of a chain
    (num_steps, w_range) are leaves, so they are traced and all rounds share a compiled update.

    Attributes:
      num_steps: number of network calls of the sampler.
      w_range: (smallest, largest) w that the network takes as an input; None without that input.
      w: guidance strength that goes into the weights of a student without that input.
      label_dropout: probability of the null condition in training, in [0, 1].
      all_times: whether the network is trained at all times in [0, 1], or only on its grid.
      clip_target: whether the targets are clipped to the bounds of the data.
      augment: probability of each change of diffusion.augmentation in training, 0 for none.
      resolutions: sides of the square training images, () for only the data's own.
      needs_teacher: whether the method needs a finished teacher network.
      data_free: whether it trains without images: batch.x is None.
      draws: whether it trains on samples of its teacher, by the teacher's own sampler.
      keep_weight: weight of a loss that compares with the network of the stage option `onto`.
      keep_labels: labels for which it does.
      needs_features: whether its losses use features from the middle of the networks.
      differentiates: whether its losses take derivatives of the networks by `jax.jvp`.
      has_discriminator: whether the fake network has a head that classifies data and samples.
      discriminator: name of that head in models.DISCRIMINATORS.
      parameterizations: names of the parameterizations that it supports, () for all.
      needs: rules (method, teacher) beyond those of single options; each raises ValueError.
    """

    num_steps: Any
    w_range: Any = None
    w: float = 0.0
    label_dropout: float = 0.0
    all_times: bool = False
    clip_target: bool = False
    augment: float = 0.0
    resolutions: tuple[int, ...] = ()
    needs_teacher: bool = True
    data_free: bool = False
    draws: bool = False
    keep_weight: float = 0.0
    keep_labels: tuple[int, ...] = ()
    needs_features: bool = False
    differentiates: bool = False
    has_discriminator: bool = False
    discriminator: str = "pooled"
    parameterizations: tuple[str, ...] = ()
    needs: tuple[Callable[["Method", Trained], None], ...] = ()

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of one iteration, in order; by default one update of the student by `loss`."""
        return (Phase("student", type(self).loss),)  # type: ignore[attr-defined]  # Where it is used.

    def sampler(self, schedule: Schedule) -> Sampler:
        """The sampler of the finished network, on the times of the schedule; DDIM by default."""
        return Ddim(self.num_steps)

    def check(self, teacher: Trained | None) -> None:
        """Raises ValueError if an option breaks its rule, or the teacher does not fit."""
        check_options(self)
        for need in self.needs:
            need(self, teacher)

    @property
    def guides(self) -> bool:
        """Whether the method needs a null condition for guidance."""
        return self.w_range is not None or self.w != 0

    @property
    def fixed_w(self) -> float:
        """The guidance strength in the weights of a network that takes no w."""
        return self.w

    def trained(self, schedule: Schedule) -> Trained:
        """Returns the record of the training that is stored with the finished network."""
        guidance = Guidance(self.w_range, self.fixed_w, self.label_dropout > 0)
        sampler, saturated = self.sampler(schedule), self.clip_target
        return Trained(sampler, guidance, self.all_times, saturated, self.resolutions)


def weighted_mse(weighting: str, denoiser: Denoiser, x_hat: Image, x: Image, t: Time) -> jax.Array:
    """Returns the mean over the batch of weight(logsnr(t)) * mean((x_hat - x)^2).

    Salimans & Ho (2022), section 4. The error is taken in x for every parameterization; the
    weighting turns it into the error of x, eps or v.
    """
    weight = WEIGHTINGS[weighting](denoiser.schedule.logsnr(t))
    return jnp.mean(weight * mean_squared(x_hat, x))


def saturating_target(target: Image, x_hat: Image) -> Image:
    """Replaces the target by x_hat where both clip to the same bound: those pixels have no loss.

    Every x_hat <= -1 satisfies a clipped target of -1, and every x_hat >= 1 a target of 1. A plain
    squared error would pull them back to the bound. Half of the remaining errors then lie inside
    it, and the sampler's clipping keeps only that half: samples lose contrast, a bias that grows
    with every round of a chain. This rule is ours; the reference clips only in the sampler.
    """
    beyond = (jnp.abs(target) >= 1 - 1e-6) & (x_hat * jnp.sign(target) >= 1)
    return jnp.where(beyond, jax.lax.stop_gradient(x_hat), target)


def drop_labels(key: jax.Array, batch: Batch, probability: float) -> dict[str, jax.Array]:
    """Returns the conditions of a batch, replaced at random by the null condition per example.

    Ho & Salimans (2022, arXiv:2207.12598), Algorithm 1. Conditions without a null stay.
    """
    drop = jax.random.bernoulli(key, probability, (batch.size,))
    dropped = {
        name: jnp.where(drop.reshape(-1, *(1,) * (value.ndim - 1)), value, batch.cond[name])
        for name, value in batch.null.items()
    }
    return {**batch.cond, **dropped}


def augmented(key: jax.Array, x: Image, cond: Cond, probability: float) -> tuple[Image, Cond]:
    """Returns augmented images, and the conditions with their labels; see augmentation.augment.

    With probability 0 both are unchanged.
    """
    if probability == 0:
        return x, cond
    x, labels = augment(key, x, probability)
    return x, {**cond, AUGMENT: labels}


def draw_w(key: jax.Array, w_range: tuple, like: Image) -> Time:
    """Draws w ~ U[w_range], one per example (Meng et al. 2023, Algorithm 1)."""
    low, high = w_range
    return low + (high - low) * jax.random.uniform(key, like.shape[:1], like.dtype)


def with_w(key: jax.Array, cond: Cond, w_range: tuple | None, like: Image) -> dict[str, jax.Array]:
    """Returns the conditions, with a random "w" from `w_range` for a network that takes w."""
    return dict(cond) if w_range is None else {**cond, "w": draw_w(key, w_range, like)}
