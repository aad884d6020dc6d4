"""Tests of the convolution, against XLA's and Flax's."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models.convolution import Conv, convolve

NUMBERS = ("NHWC", "HWIO", "NHWC")
PLACES = {  # Strides and padding.
    "SAME": ((1, 1), "SAME"),
    "every second": ((2, 2), ((0, 1), (0, 1))),
    "without padding": ((1, 1), "VALID"),
}


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def functions(place):
    """Returns ours and XLA's, of x and kernel."""
    return [
        functools.partial(_call, f, *PLACES[place])
        for f in (convolve, jax.lax.conv_general_dilated)
    ]


def _call(function, strides, padding, x, kernel):
    return function(x, kernel, strides, padding, dimension_numbers=NUMBERS)


def convolutions(function, *args):
    """Returns the shapes of the outputs of all convolutions that a function computes."""
    lines = str(jax.make_jaxpr(function)(*args)).splitlines()
    return [line.split("=")[0].split(":")[1].strip() for line in lines if "conv_general" in line]


@pytest.mark.parametrize("channels", [5, 64, 150])
@pytest.mark.parametrize("place", PLACES)
def test_values_and_derivatives_are_those_of_xla(place, channels):
    x, kernel = normal(0, 2, 6, 6, 3), normal(1, 3, 3, 3, channels)
    found = []
    for function in functions(place):
        y, gradient = jax.vjp(function, x, kernel)
        _, change = jax.jvp(function, (x, kernel), (normal(2, *x.shape), normal(3, *kernel.shape)))
        _, slope = jax.jvp(lambda x, f=function: f(x, kernel), (x,), (normal(2, *x.shape),))
        second = jax.grad(
            lambda k, f=function: jnp.sum(jax.jvp(lambda x: f(x, k) ** 3, (x,), (x,))[1])
        )
        found.append([y, *gradient(normal(4, *y.shape)), change, slope, second(kernel)])
    for ours, xla in zip(*found, strict=True):
        np.testing.assert_allclose(ours, xla, rtol=1e-4, atol=1e-4 * np.abs(xla).max())


def test_on_a_cpu_the_gradient_of_the_kernel_is_computed_for_64_channels_at_a_time():
    x, kernel = normal(0, 2, 6, 6, 3), normal(1, 3, 3, 3, 150)
    (ours, _), tall = functions("SAME"), "f32[3,3,3,"
    gradient = jax.grad(lambda k: jnp.sum(ours(x, k) ** 2))
    parts = [shape for shape in convolutions(gradient, kernel) if "150" not in shape]
    assert len(parts) == 3
    assert convolutions(gradient, kernel[..., :64]) == convolutions(
        jax.grad(lambda k: jnp.sum(functions("SAME")[1](x, k) ** 2)), kernel[..., :64]
    ), tall


def test_a_derivative_along_the_image_alone_computes_none_along_the_kernel():
    x, kernel = normal(0, 2, 6, 6, 3), normal(1, 3, 3, 3, 150)
    ours, _ = functions("SAME")
    assert len(convolutions(lambda x: jax.jvp(lambda x: ours(x, kernel), (x,), (x,)), x)) == 2


def test_the_layer_is_that_of_flax():
    x = normal(0, 2, 8, 8, 3).astype(jnp.bfloat16)
    ours, flax = (layer(70, (3, 3), dtype=jnp.bfloat16, name="a") for layer in (Conv, nn.Conv))
    params = flax.init(jax.random.key(1), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, ours.init(jax.random.key(1), x)
    )
    y = ours.apply(params, x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, flax.apply(params, x))
