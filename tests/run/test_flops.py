import functools

import jax
import jax.numpy as jnp
import pytest

from distill_jax.run.flops import flops


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_product_is_two_operations_for_every_pair_that_it_multiplies():
    assert flops(jnp.matmul, shaped(3, 5), shaped(5, 7)) == 2 * 3 * 5 * 7
    assert flops(jnp.matmul, shaped(4, 3, 5), shaped(4, 5, 7)) == 2 * 4 * 3 * 5 * 7
    assert flops(jnp.add, shaped(3, 5), shaped(3, 5)) == 0


def convolve(x, kernel, **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, **{"window_strides": (1, 1), **options}, dimension_numbers=numbers
    )


def test_a_convolution_counts_the_taps_that_lie_on_the_image():
    x, kernel = shaped(6, 5, 5, 2), shaped(3, 3, 2, 4)
    inside = functools.partial(convolve, padding="VALID")
    same = functools.partial(convolve, padding="SAME")
    assert flops(inside, x, kernel) == 2 * 6 * (3 * 3) ** 2 * 2 * 4
    # Along an axis of 5 pixels there are 2 taps at either end and 3 at each pixel between.
    assert flops(same, x, kernel) == 2 * 6 * (2 + 3 + 3 + 3 + 2) ** 2 * 2 * 4


CONVOLUTIONS = {
    "strided": {"window_strides": (2, 1), "padding": "SAME"},
    "dilated kernel": {"rhs_dilation": (2, 3), "padding": "SAME"},
    "dilated image": {"lhs_dilation": (2, 1), "padding": ((2, 1), (1, 1))},
    "cropped": {"padding": ((-1, 0), (3, -2))},
    "grouped": {"feature_group_count": 2, "padding": "SAME"},
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_and_their_gradients_are_counted_as_xla_counts_them(kind):
    def total(x, kernel):
        return jnp.sum(convolve(x, kernel, **CONVOLUTIONS[kind]))

    groups = CONVOLUTIONS[kind].get("feature_group_count", 1)
    x, kernel = shaped(2, 9, 8, 32 * groups), shaped(3, 3, 32, 16 * groups)
    for function in (total, jax.value_and_grad(total, argnums=(0, 1))):
        theirs = jax.jit(function).lower(x, kernel).cost_analysis()["flops"]
        # XLA also counts one addition for each number of the result.
        assert flops(function, x, kernel) == pytest.approx(theirs, rel=0.02)


def test_inner_programs_count_as_often_as_they_run():
    x = shaped(4, 4)
    once = 2 * 4**3

    def repeated(x):
        return jax.lax.scan(lambda h, _: (jax.jit(jnp.matmul)(h, h), None), x, length=5)

    def branched(x):
        return jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x, x)

    assert flops(repeated, x) == 5 * once
    assert flops(branched, x) == 2 * once


def test_operations_that_a_gradient_recomputes_are_counted_again():
    def total(x, wrap=lambda function: function):
        return jnp.sum(wrap(lambda x: jnp.sin(x @ x))(x) @ x)

    plain = flops(jax.grad(total), shaped(4, 4))
    assert flops(jax.grad(lambda x: total(x, jax.checkpoint)), shaped(4, 4)) == plain + 2 * 4**3
