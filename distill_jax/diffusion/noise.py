"""Noise of examples by their number, so that samples do not depend on how they were batched."""

import functools

import jax
import jax.numpy as jnp

from distill_jax.typing import Resized


def keys_of(key: jax.Array, numbers: jax.Array) -> jax.Array:
    """A key for each example (b,), folded from one key and the numbers (b,) of the examples."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


@functools.partial(jax.jit, static_argnames=("num", "shape"))
def noise_of(key: jax.Array, first: jax.Array | int, num: int, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal noise (num, *shape) of the examples from `first` on."""
    keys = keys_of(key, first + jnp.arange(num))
    return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)


def step_noise(key: jax.Array, step: jax.Array | int, x: Resized) -> Resized:
    """Standard normal noise of a sampler's step, shaped as x; of one key, or of one per example."""
    if key.ndim == 0:
        return jax.random.normal(jax.random.fold_in(key, step), x.shape, x.dtype)
    each = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, step), x.shape[1:], x.dtype))
    return each(key)
