"""The samplers of finished networks, and a record of what such a network was trained to do.

The samplers are small frozen dataclasses, called with (key, denoiser, z, cond), equal by value and
pytrees: their numbers are traced, so one program serves every number of steps.
"""

import abc
import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.diffusion import samplers
from distill_jax.diffusion.denoiser import Denoiser, clipped
from distill_jax.diffusion.schedule import expand
from distill_jax.runtime.trees import traced
from distill_jax.typing import Cond, Image, Resized


class Sampler(abc.ABC):
    """From standard normal noise to images; an encoder goes the other way.

    Attributes:
      num_steps: network calls.
      times: of its calls, in order.
      takes: conditions that it gives the network beside the label.
      decodes: whether it goes from noise to images.
      on_grid: whether another number of steps has other times, so that it takes a network that was
        trained at all of them.
    """

    num_steps: Any
    times: Any
    takes: ClassVar[tuple[str, ...]] = ()
    decodes: ClassVar[bool] = True
    on_grid: ClassVar[bool] = True

    @abc.abstractmethod
    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Resized:
        """Images of the noise z; `key` is one, or one per example."""

    def with_steps(self, num_steps: int) -> "Sampler | None":
        """The same sampler in another number of steps; None where it has one number only."""
        return dataclasses.replace(self, num_steps=num_steps)


class Falling(Sampler):
    """A sampler whose calls are at 1, (N - 1) / N, ..., 1 / N."""

    @property
    def times(self) -> tuple[float, ...]:
        """1, (N - 1) / N, ..., 1 / N."""
        return tuple(i / self.num_steps for i in range(self.num_steps, 0, -1))


@traced("num_steps")
class Ddim(Falling):
    """samplers.ddim, x clipped to the bounds of the data."""

    num_steps: Any

    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Image:
        return samplers.ddim(clipped(denoiser), z, cond, self.num_steps)


@traced("num_steps")
class Stochastic(Falling):
    """samplers.stochastic, x clipped to the bounds of the data."""

    num_steps: Any

    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Image:
        return samplers.stochastic(key, clipped(denoiser), z, cond, self.num_steps)


@traced("num_steps", "variance")
class Ancestral(Falling):
    """samplers.ancestral with its weight of the large variance, x clipped to the data's bounds."""

    num_steps: Any
    variance: Any = 0.0

    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Image:
        steps = self.num_steps
        return samplers.ancestral(key, clipped(denoiser), z, cond, steps, self.variance)


@traced()
class Renoise(Sampler):
    """samplers.renoise: calls at `times`, in images of `resolutions`, () for the data's own.

    A generator of one call may be repeated on its own images, noised again: N calls at
    t_1 (1 - i / N).
    """

    times: tuple[float, ...]
    resolutions: tuple[int, ...] = ()

    on_grid = False

    @property
    def num_steps(self) -> int:
        """The number of times."""
        return len(self.times)

    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Resized:
        return samplers.renoise(key, denoiser, z, cond, self.times, self.resolutions)

    def with_steps(self, num_steps: int) -> "Renoise | None":
        """num_steps calls at t_1 (1 - i / N); None for a sampler of several times."""
        if len(self.times) > 1:
            return None
        (t,) = self.times
        return Renoise(tuple(t * (1 - i / num_steps) for i in range(num_steps)), self.resolutions)


@traced()
class Signal(Sampler):
    """One call at t_max that is asked for the signal at t_min, see methods.boot."""

    t_min: float
    t_max: float

    takes = ("target",)
    num_steps = 1

    @property
    def times(self) -> tuple[float, ...]:
        """t_max only."""
        return (self.t_max,)

    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Image:
        t = jnp.full(z.shape[:1], self.t_max, z.dtype)
        target = jnp.full(z.shape[:1], self.t_min, z.dtype)
        noise = expand(denoiser.schedule.sigma(t), z) * z
        return denoiser(noise, t, {**cond, "target": target}).x

    def with_steps(self, num_steps: int) -> None:
        """None: the sampler makes one call."""


@traced("num_steps")
class Encode(Sampler):
    """samplers.ddim_encode: from images to noise."""

    num_steps: Any
    decodes = False

    @property
    def times(self) -> tuple[float, ...]:
        """0, 1 / N, ..., (N - 1) / N."""
        return tuple(i / self.num_steps for i in range(self.num_steps))

    def __call__(self, key: jax.Array, denoiser: Denoiser, z: Image, cond: Cond) -> Image:
        return samplers.ddim_encode(denoiser, z, cond, self.num_steps)


SAMPLERS = {
    "ancestral": Ancestral,
    "ddim": Ddim,
    "encode": Encode,
    "renoise": Renoise,
    "signal": Signal,
    "stochastic": Stochastic,
}


class Guidance(NamedTuple):
    """How guidance gets into the samples of a network.

    Attributes:
      w_range: (smallest, largest) strength that it takes as an input; None when it takes none.
      fixed_w: the strength in the weights of a network that takes none.
      null: whether it was trained on the null condition, so that it can be guided.
    """

    w_range: tuple[float, float] | None = None
    fixed_w: float = 0.0
    null: bool = False


class Trained(NamedTuple):
    """The training of a network, as far as its sampler and its students depend on it.

    Attributes:
      sampler: that it was made for.
      guidance: see Guidance.
      all_times: whether it was trained at all times in [0, 1], or at those of its sampler only.
      saturated: whether its x is right within the bounds of the data only, because its targets were
        clipped: of an x beyond them it was taught nothing but the sign.
      resolutions: of the images it was trained on, () for the data's own only.
    """

    sampler: Sampler
    guidance: Guidance = Guidance()
    all_times: bool = False
    saturated: bool = False
    resolutions: tuple[int, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """Numbers that the network takes beside z, t and the conditions of the data."""
        return (*(("w",) if self.guidance.w_range else ()), *self.sampler.takes)

    @property
    def num_steps(self) -> int:
        """Network calls of its sampler."""
        return int(self.sampler.num_steps)

    @property
    def uses_ddim(self) -> bool:
        """Whether its sampler is DDIM, so that editing may start or look in its middle."""
        return isinstance(self.sampler, Ddim)


@functools.cache
def name_of(kind: type) -> str:
    """The name of a sampler in SAMPLERS; package.module:Name for one that is not there."""
    own = f"{kind.__module__}:{kind.__qualname__}"
    return next((name for name, cls in SAMPLERS.items() if cls is kind), own)
