"""What a method is: phases, each a network to train and a pure loss. One loop runs them all."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser, clipped
from distill_jax.diffusion.prediction import mean_squared
from distill_jax.diffusion.samplers import ddim
from distill_jax.diffusion.weighting import WEIGHTINGS
from distill_jax.typing import Batch, Cond, Image, Time

Metrics = dict[str, jax.Array]


class Nets(NamedTuple):
    """The networks of one iteration by role."""

    student: Denoiser
    teacher: Denoiser | None = None


class Phase(NamedTuple):
    """One update of one network.

    `loss(method, key, batch, nets) -> (scalar, metrics)` is pure; the gradient is taken in the
    parameters of the role `trains` alone, and every other network is a constant.
    """

    trains: str
    loss: Callable[[Any, jax.Array, Batch, Nets], tuple[jax.Array, Metrics]]


@runtime_checkable
class Method(Protocol):
    """A paper's training losses and its sampler.

    A method is a frozen dataclass and a pytree. Numbers that differ between the rounds of a chain
    (num_steps, w_range) are leaves, so they are traced and all rounds share a compiled update.

    Attributes:
      num_steps: network calls of `sample`.
      w_range: (smallest, largest) guidance strength the network takes as an input, None when it
        takes none.
      continuous: whether the network is trained at all times in [0, 1], or on its grid alone.
      needs_teacher: whether a finished network must come before this method.
    """

    num_steps: Any
    w_range: tuple | None
    continuous: bool
    needs_teacher: bool

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases of one iteration, in order."""
        ...

    def check(self, teacher: "Method | None") -> None:
        """Raises ValueError when the method's numbers, or its teacher's, make no sense."""
        ...

    def sample(self, key: jax.Array, student: Denoiser, z: Image, cond: Cond) -> Image:
        """Images from standard normal noise z."""
        ...


def traced(*names: str) -> Callable[[type], type]:
    """Makes a class a frozen dataclass and a pytree whose leaves are the fields named here.

    Those fields hold numbers or tracers, so their type is Any.
    """

    def register(cls: type) -> type:
        cls = dataclasses.dataclass(frozen=True)(cls)
        fields = [field.name for field in dataclasses.fields(cls)]
        constant = [name for name in fields if name not in names]
        return jax.tree_util.register_dataclass(cls, list(names), constant)

    return register


def sample_ddim(method: Method, student: Denoiser, z: Image, cond: Cond) -> Image:
    """DDIM with the method's number of steps, x clipped where the method clips."""
    return ddim(clipped(student) if method.clip else student, z, cond, method.num_steps)


def weighted_mse(weighting: str, denoiser: Denoiser, x_hat: Image, x: Image, t: Time) -> jax.Array:
    """Mean over the batch of weight(logsnr(t)) * mean((x_hat - x)^2).

    Salimans & Ho (2022), section 4. All parameterizations are compared in x; the weight decides
    whether that is the error of x, eps or v.
    """
    weight = WEIGHTINGS[weighting](denoiser.schedule.logsnr(t))
    return jnp.mean(weight * mean_squared(x_hat, x))


def reachable(target: Image, x_hat: Image) -> Image:
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
    drop = jax.random.bernoulli(key, probability, batch.x.shape[:1])
    return {name: jnp.where(drop, batch.null[name], value) for name, value in batch.cond.items()}


def draw_w(key: jax.Array, w_range: tuple, like: Image) -> Time:
    """w ~ U[w_range], one per example (Meng et al. 2023, Algorithm 1)."""
    low, high = w_range
    return low + (high - low) * jax.random.uniform(key, like.shape[:1], like.dtype)


def check_steps(num_steps: Any) -> None:
    """Raises ValueError unless num_steps is a whole number from 1."""
    if num_steps != int(num_steps) or num_steps < 1:
        raise ValueError(
            f"num_steps is {num_steps}; a sampler takes a whole number of steps from 1"
        )


def check_w_range(w_range: tuple) -> None:
    """Raises ValueError unless w_range is (low, high) with 0 <= low <= high."""
    if len(w_range) != 2 or not 0 <= w_range[0] <= w_range[1]:
        raise ValueError(
            f"w_range is {tuple(w_range)}; expected (smallest, largest) with "
            "0 <= smallest <= largest, for w = 0 is the model without guidance"
        )


def check_probability(name: str, value: float) -> None:
    """Raises ValueError unless the value lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; expected a probability in [0, 1]")


def check_inherited_w(w_range: tuple | None, teacher: "Method") -> None:
    """Raises ValueError unless a student takes w exactly when its teacher does, and within it."""
    if (w_range is None) != (teacher.w_range is None):
        raise ValueError(
            f"w_range is {w_range}, the teacher's {teacher.w_range}; a halving keeps its "
            "teacher's input w: give w_range exactly when the teacher was trained with one"
        )
    if w_range is None:
        return
    check_w_range(w_range)
    if w_range[0] < teacher.w_range[0] or w_range[1] > teacher.w_range[1]:
        raise ValueError(
            f"w_range {tuple(w_range)} leaves the teacher's {tuple(teacher.w_range)}; "
            "stay inside it"
        )


def check_weighting(weighting: str) -> None:
    """Raises ValueError for an unknown weighting."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}; known: {', '.join(WEIGHTINGS)}")
