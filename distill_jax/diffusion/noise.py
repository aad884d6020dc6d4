"""Noise drawn by the number of an example, so that samples do not depend on the batch size."""

import functools

import jax
import jax.numpy as jnp

from distill_jax.typing import Resized


def key_of(seed: jax.Array | int) -> jax.Array:
    """Returns the PRNG key of a seed; a key stays as it is.

    Raises:
      ValueError: for a seed outside 0 <= seed < 2^32, of which JAX would use other bits.
    """
    if isinstance(seed, jax.Array):
        return seed
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed!r}; expected a whole number from 0 to {2**32 - 1}")
    return jax.random.key(seed)


def keys_of(key: jax.Array, numbers: jax.Array) -> jax.Array:
    """Folds one key with the numbers (b,) of examples into one key per example."""
    return jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)


@functools.partial(jax.jit, static_argnames=("num", "shape"))
def noise_of(key: jax.Array, first: jax.Array | int, num: int, shape: tuple[int, ...]) -> jax.Array:
    """Draws standard normal noise (num, *shape) for the examples first .. first + num - 1."""
    return noise_at(keys_of(key, first + jnp.arange(num)), shape)


def noise_at(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws standard normal noise (b, *shape), one example per key."""
    return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)


def step_noise(key: jax.Array, step: jax.Array | int, x: Resized) -> Resized:
    """Draws the normal noise of a sampler step, shaped as x, from one key or one per example.

    Noise that was drawn before takes the place of the key: floats (b, steps, h, w, c), of which a
    smaller x gets a corner. A step beyond its end gets the last.
    """
    if jnp.issubdtype(key.dtype, jnp.floating):
        given = jax.lax.dynamic_index_in_dim(key, step, 1, keepdims=False)
        return given[(slice(None), *map(slice, x.shape[1:]))]
    if key.ndim == 0:
        return jax.random.normal(jax.random.fold_in(key, step), x.shape, x.dtype)
    each = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, step), x.shape[1:], x.dtype))
    return each(key)
