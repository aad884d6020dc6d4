"""A convolution whose gradient in the kernel is faster on CPUs."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

AT_A_TIME = 64  # Channels of the output.


def convolve(x: jax.Array, kernel: jax.Array, *args: Any, **options: Any) -> jax.Array:
    """Returns `jax.lax.conv_general_dilated` of images x (b, h, w, c) and a kernel (..., c, d).

    The kernel's gradient is a convolution of x with an image of d channels. On CPUs, XLA's slows
    down where that image outgrows the processor's cache, so it is computed for 64 channels at a
    time, 1.0 to 1.9 times as fast. Values and derivatives are the same in other respects.

    Args:
      x: images.
      kernel: the kernel.
      *args: strides and padding, as there.
      **options: as there.
    """

    def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, *args, **options)

    def derivative(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (x, kernel), (dx, dk) = primals, tangents
        y = plain(x, kernel)
        change = jnp.zeros_like(y)
        if not isinstance(dx, SymbolicZero):
            change += plain(dx, kernel)
        if not isinstance(dk, SymbolicZero):
            parts = jnp.split(dk, [*range(AT_A_TIME, dk.shape[-1], AT_A_TIME)], axis=-1)
            change += jnp.concatenate([plain(x, part) for part in parts], axis=-1)
        return y, change

    if jax.devices()[0].platform != "cpu" or kernel.shape[-1] <= AT_A_TIME:
        return plain(x, kernel)
    convolved = jax.custom_jvp(plain)
    convolved.defjvp(derivative, symbolic_zeros=True)
    return convolved(x, kernel)


# Flax's layer with this convolution.
Conv = functools.partial(nn.Conv, conv_general_dilated_cls=lambda: convolve)
