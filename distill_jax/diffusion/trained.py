"""The samplers of finished networks, and a record of how such a network was trained.

The samplers are small frozen dataclasses, called with (key, denoiser, z, cond). They are equal by
value and pytrees, and their numbers are traced: one program serves every number of steps.
"""

import abc
import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.diffusion import heun, samplers
from distill_jax.diffusion.denoiser import Denoiser, clipped
from distill_jax.diffusion.schedule import expand
from distill_jax.runtime.options import (
    MAX_STEPS,
    MAX_WIDTH,
    Rule,
    both,
    every,
    number,
    option,
    whole,
)
from distill_jax.runtime.trees import traced
from distill_jax.typing import Cond, Image, Resized

STEPS = whole(1, high=MAX_STEPS)


def _fall(times: Sequence[float]) -> bool:
    """Returns whether the times lie in (0, 1] and fall."""
    return all(t > s for t, s in itertools.pairwise((*times, 0.0))) and max(times, default=1.0) <= 1


def _grow(resolutions: Sequence[int]) -> bool:
    """Returns whether no resolution is smaller than the one before it."""
    return all(a <= b for a, b in itertools.pairwise(resolutions))


FALLING = Rule(_fall, "times in (0, 1] that fall, such as (1.0, 0.75, 0.5)")
GROWING = Rule(_grow, "whole numbers from 1 that do not shrink, such as (4, 8)")
TIMES = both(every(number(0, 1), 1024), FALLING)  # Methods take () for one call at a noise level.
CALLS = both(every(number(0, 1), 1024, 1), FALLING)
RESOLUTIONS = both(every(whole(1, high=MAX_WIDTH), 64), GROWING)


class Sampler(abc.ABC):
    """A map from standard normal noise to images; an encoder's sampler maps images to noise.

    Attributes:
      num_steps: number of steps.
      times: times of the steps, in order.
      takes: names of the network inputs that the sampler sets, beside z, t and the data's cond.
      decodes: whether it maps noise to images.
      draws: whether it adds new noise between its calls, if it makes more than one.
      on_grid: whether its times depend on the number of steps, so that changing the number needs a
        network that was trained at all times.
    """

    num_steps: Any
    times: Any
    takes: ClassVar[tuple[str, ...]] = ()
    decodes: ClassVar[bool] = True
    draws: ClassVar[bool] = False
    on_grid: ClassVar[bool] = True

    @property
    def calls(self) -> Any:
        """The number of network calls: one per step, unless a sampler makes more."""
        return self.num_steps

    @abc.abstractmethod
    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Resized:
        """Returns images for the noise z; `key` is one key, or one per example."""

    def with_steps(self, num_steps: int) -> "Sampler | None":
        """Returns the sampler with another number of steps; None if its number is fixed."""
        return dataclasses.replace(self, num_steps=num_steps)  # type: ignore[type-var]  # Samplers are dataclasses.


class Falling(Sampler):
    """A sampler whose calls are at 1, (N - 1) / N, ..., 1 / N."""

    @property
    def times(self) -> tuple[float, ...]:
        """The times 1, (N - 1) / N, ..., 1 / N."""
        return tuple(i / self.num_steps for i in range(self.num_steps, 0, -1))


@traced("num_steps")
class Ddim(Falling):
    """The sampler samplers.ddim, with x clipped if the data are bounded."""

    num_steps: Any = option(STEPS)

    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Image:
        return samplers.ddim(clipped(denoiser), z, cond, self.num_steps)


@traced("num_steps")
class Heun(Falling):
    """The sampler heun.heun of EDM, with 2 N - 1 calls; `churn` and what follows are Churn's.

    Its noise levels are EDM's, and not those of `times`, at which editing takes DDIM's steps.

    Attributes:
      churn: S_churn, the strength of the noise that is added before a step; 0 adds none.
      low: S_min, the lowest noise level of a step with added noise.
      high: S_max, the highest such level.
      noise: S_noise, the factor of the added noise.
    """

    num_steps: Any = option(STEPS)
    churn: float = option(number(0, 1e6), 0.0)
    low: float = option(number(0, 1e6), 0.0)
    high: float = option(number(0, 1e6), heun.SIGMA_MAX)
    noise: float = option(number(0, 1e6), 1.0)

    @property
    def calls(self) -> Any:
        """The number of network calls: two per step, and one in the last."""
        return 2 * self.num_steps - 1

    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Image:
        churn = heun.Churn(self.churn, self.low, self.high, self.noise)
        return heun.heun(key, denoiser, z, cond, self.num_steps, churn)


@traced("num_steps")
class Stochastic(Falling):
    """The sampler samplers.stochastic, with x clipped if the data are bounded."""

    num_steps: Any = option(STEPS)

    draws = True

    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Image:
        return samplers.stochastic(key, clipped(denoiser), z, cond, self.num_steps)


@traced("num_steps", "variance")
class Ancestral(Falling):
    """The sampler samplers.ancestral and its `variance`, with x clipped if the data are bounded.

    Attributes:
      variance: 0 for the small variance of the steps, 1 for the large one.
    """

    num_steps: Any = option(STEPS)
    variance: Any = option(number(0, 1), 0.0)

    draws = True

    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Image:
        steps = self.num_steps
        return samplers.ancestral(key, clipped(denoiser), z, cond, steps, self.variance)


@traced()
class Renoise(Sampler):
    """The sampler samplers.renoise, with calls at `times` and image sides `resolutions`.

    () stands for the side of the data. A one-call generator may be repeated on its own images with
    new noise: N calls at t_1 (1 - i / N).

    Attributes:
      times: falling times of the calls.
      resolutions: sides of the images of the calls.
    """

    times: tuple[float, ...] = option(CALLS)
    resolutions: tuple[int, ...] = option(RESOLUTIONS, ())

    on_grid = False
    draws = True

    @property
    def num_steps(self) -> int:
        """The number of calls."""
        return len(self.times)

    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Resized:
        return samplers.renoise(key, denoiser, z, cond, self.times, self.resolutions)

    def with_steps(self, num_steps: int) -> "Renoise | None":
        """Returns a sampler of num_steps calls at t_1 (1 - i / N); None if it has several times."""
        if len(self.times) > 1:
            return None
        (t,) = self.times
        return Renoise(tuple(t * (1 - i / num_steps) for i in range(num_steps)), self.resolutions)


@traced()
class Signal(Sampler):
    """BOOT's sampler: one call on noise at t_max predicts the signal at t_min, see methods.boot.

    Attributes:
      t_min: time of the signal.
      t_max: time of the noise.
    """

    t_min: float = option(number(0, 1))
    t_max: float = option(number(0, 1))

    takes = ("target",)
    num_steps = 1

    @property
    def times(self) -> tuple[float, ...]:
        """The single time t_max."""
        return (self.t_max,)

    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Image:
        t = jnp.full(z.shape[:1], self.t_max, z.dtype)
        target = jnp.full(z.shape[:1], self.t_min, z.dtype)
        noise = expand(denoiser.schedule.sigma(t), z) * z
        return denoiser(noise, t, {**cond, "target": target}).x

    def with_steps(self, num_steps: int) -> None:
        """Returns None: the sampler makes one call."""


@traced("num_steps")
class FlowMap(Falling):
    """The sampler samplers.flow_map, for a network that is trained for all pairs of times.

    So any number of steps will do, though the network is no denoiser for a sampler of another kind.
    """

    num_steps: Any = option(STEPS)

    takes = ("target",)
    on_grid = False

    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Image:
        return samplers.flow_map(denoiser, z, cond, self.num_steps)


@traced("num_steps")
class Encode(Sampler):
    """The sampler samplers.ddim_encode, which maps images to noise."""

    num_steps: Any = option(STEPS)
    decodes = False

    @property
    def times(self) -> tuple[float, ...]:
        """The times 0, 1 / N, ..., (N - 1) / N."""
        return tuple(i / self.num_steps for i in range(self.num_steps))

    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Image:
        return samplers.ddim_encode(denoiser, z, cond, self.num_steps)


SAMPLERS = {
    "ancestral": Ancestral,
    "ddim": Ddim,
    "encode": Encode,
    "flow_map": FlowMap,
    "heun": Heun,
    "renoise": Renoise,
    "signal": Signal,
    "stochastic": Stochastic,
}


class Guidance(NamedTuple):
    """The guidance of a network: by an input w, in its weights, or by a null condition.

    Attributes:
      w_range: (smallest, largest) w that the network takes as an input; None without that input.
      fixed_w: the w in the weights of a network without that input.
      null: whether the network was trained on the null condition, so that it can be guided.
    """

    w_range: tuple[float, float] | None = None
    fixed_w: float = 0.0
    null: bool = False


class Trained(NamedTuple):
    """The training of a network, as far as its sampler and its students depend on it.

    Attributes:
      sampler: the sampler that the network was trained for.
      guidance: see Guidance.
      all_times: whether it was trained at all times in [0, 1], or only at the sampler's times.
      saturated: whether its training targets were clipped, so that an x outside [-1, 1] has a
        meaningful sign but no meaningful size.
      resolutions: sides of the images it was trained on, () for only the data's own.
    """

    sampler: Sampler
    guidance: Guidance = Guidance()
    all_times: bool = False
    saturated: bool = False
    resolutions: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the network's inputs beside z, t and the conditions of the data."""
        return (*(("w",) if self.guidance.w_range else ()), *self.sampler.takes)

    @property
    def num_steps(self) -> int:
        """The number of steps of its sampler."""
        return int(self.sampler.num_steps)

    @property
    def calls(self) -> int:
        """The number of network calls of its sampler."""
        return int(self.sampler.calls)

    @property
    def uses_ddim(self) -> bool:
        """Whether DDIM's steps sample it, so that editing can start at an intermediate one."""
        return isinstance(self.sampler, (Ddim, Heun))


@functools.cache
def name_of(kind: type) -> str:
    """Returns the name of a sampler in SAMPLERS, or package.module:Name if it is not there."""
    own = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, cls in SAMPLERS.items() if cls is kind), own)
