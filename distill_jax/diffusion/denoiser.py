"""The interface between networks and mathematics: a denoiser maps (z_t, t, cond) to (x, eps)."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from distill_jax.diffusion.prediction import Parameterization, Prediction, eps_from_x
from distill_jax.diffusion.schedule import Schedule, expand
from distill_jax.diffusion.spec import Spec
from distill_jax.typing import Cond, Image, Output, Time, Tree


class Network(NamedTuple):
    """A neural network as pure functions.

    `init(key, z, t, cond) -> params`; the keys of `cond` decide which conditions it embeds.
    `apply(params, z, t, cond, key=None) -> output` with the channels of its parameterization. A
    key switches dropout on.
    `features(params, z, t, cond) -> (b, positions, channels)`: features from the middle of the
    network; None if it has none.
    `parameterizations`: names of the parameterizations that it supports, () for all.
    `input_axes(params, z, t, cond) -> {name of a kernel: number of its leading input axes}` for
    every kernel that takes an adapter; None if the network takes no adapters.
    `per_layer`: whether the layers gather weights that are split over devices; see models.sharded.
    `in_turn`: whether gradients are summed layer by layer; see models.sharded.Sharded.
    """

    init: Callable[[jax.Array, Image, Time, Cond], Tree]
    apply: Callable[..., Output]
    features: Callable[..., jax.Array] | None = None
    parameterizations: tuple[str, ...] = ()
    input_axes: Callable[..., dict[str, int]] | None = None
    per_layer: bool = False
    in_turn: bool = False


class Head(NamedTuple):
    """A discriminator head, a small network on the features of another, as pure functions.

    `init(key, features) -> params`, for features (b, positions, channels).
    `apply(params, features) -> (b,)`, one logit per example.
    """

    init: Callable[[jax.Array, jax.Array], Tree]
    apply: Callable[[Tree, jax.Array], Time]


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A function (z_t, t, cond) -> Prediction and the schedule of its times.

    Attributes:
      schedule: the noise schedule.
      predict: (z_t, t, cond) -> Prediction. A network with dropout that trains on data takes a
        fourth argument, the key of dropout or None.
      shape: (h, w, c) of its images; () if no caller needs it.
      features: (z_t, t, cond) -> (b, positions, channels), from the middle of the network; None if
        it has none.
      discriminator: (z_t, t, cond) -> (b,), the logit that z_t is noisy data rather than a noisy
        sample; None without a discriminator head.
      bounded: whether its images lie in [-1, 1], see `clipped`.
    """

    schedule: Schedule
    predict: Callable[..., Prediction]
    shape: tuple[int, ...] = ()
    features: Callable[[Image, Time, Cond], jax.Array] | None = None
    discriminator: Callable[[Image, Time, Cond], Time] | None = None
    bounded: bool = True

    def __call__(self, z: Image, t: Time, cond: Cond, key: jax.Array | None = None) -> Prediction:
        """Predicts the clean image and the noise in z at time t, in float32 or wider.

        A key switches dropout on. The losses of teachers and of SiD's student and fake pass one.
        Progressive distillation (Salimans & Ho 2022, released configs) and DMD2 use no dropout.
        """
        return self.predict(z, t, cond) if key is None else self.predict(z, t, cond, key)


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """A network with its parameterization and the spec of its inputs, but without parameters."""

    network: Network
    parameterization: Parameterization
    spec: Spec

    @property
    def schedule(self) -> Schedule:
        """The noise schedule of the network."""
        return self.spec.schedule

    def __call__(self, params: Tree) -> Denoiser:
        """Returns the denoiser with these parameters."""
        head, middle = self.parameterization, self.network.features

        def predict(z: Image, t: Time, cond: Cond, key: jax.Array | None = None) -> Prediction:
            output = self.network.apply(params, head.scale(z, self.schedule, t), t, cond, key)
            return head.predict(output.astype(z.dtype), z, self.schedule, t)

        def features(z: Image, t: Time, cond: Cond) -> jax.Array:
            assert middle is not None
            return middle(params, head.scale(z, self.schedule, t), t, cond)

        offered, bounded = features if middle else None, self.spec.data.bounded
        return Denoiser(self.schedule, predict, self.spec.shape, offered, bounded=bounded)


def guided(denoiser: Denoiser, w: Time | float, null: Cond) -> Denoiser:
    """Returns the guided denoiser (1 + w) D(z, c) - w D(z, null), one call on twice the batch.

    Classifier-free guidance: Ho & Salimans (2022, arXiv:2207.12598). w = 0 is the conditional
    model; w is the "guidance scale" of Stable Diffusion tools minus 1. `null` is one example for
    the whole batch and replaces the conditions that it contains. The two halves are interleaved, so
    a batch sharded over devices is not moved.

    Raises:
      ValueError: when the denoiser is called with "w" in cond: it has guidance in its weights.
    """

    def predict(z: Image, t: Time, cond: Cond, key: jax.Array | None = None) -> Prediction:
        if "w" in cond:
            raise ValueError(
                "guidance on top of guidance: this denoiser takes w as an input, so guidance is "
                "already in its weights; pass w to it and do not guide it again"
            )
        pairs = {name: _interleave(c, null.get(name, c)) for name, c in cond.items()}
        both = denoiser(_interleave(z, z), _interleave(t, t), pairs, key)
        strength = expand(jnp.broadcast_to(jnp.asarray(w, z.dtype), t.shape), z)

        def extrapolate(y: jax.Array) -> jax.Array:
            return (1 + strength) * y[0::2] - strength * y[1::2]

        return Prediction(extrapolate(both.x), extrapolate(both.eps))

    return dataclasses.replace(denoiser, predict=predict)


def without_dropout(denoiser: Denoiser) -> Denoiser:
    """Returns the denoiser with dropout off, also when it is called with a key."""

    def predict(z: Image, t: Time, cond: Cond, key: jax.Array | None = None) -> Prediction:
        return denoiser(z, t, cond)

    return dataclasses.replace(denoiser, predict=predict)


def _interleave(a: jax.Array, b: jax.Array) -> jax.Array:
    """Interleaves a[0], b[0], a[1], b[1], ... along the first axis; b may have one row."""
    # jnp.stack is an operation of its own in JAX 0.10, which jax2onnx does not convert in a loop.
    pairs = jnp.concatenate([a[:, None], jnp.broadcast_to(b, a.shape)[:, None]], axis=1)
    return pairs.reshape((2 * a.shape[0],) + a.shape[1:])


def clipped(denoiser: Denoiser) -> Denoiser:
    """Returns the denoiser with x clipped to [-1, 1], and eps computed from z and the clipped x.

    A denoiser of unbounded data (latents) is returned as it is.
    """
    if not denoiser.bounded:
        return denoiser

    def predict(z: Image, t: Time, cond: Cond) -> Prediction:
        x = jnp.clip(denoiser(z, t, cond).x, -1.0, 1.0)
        return Prediction(x, eps_from_x(z, x, denoiser.schedule, t))

    return dataclasses.replace(denoiser, predict=predict)
