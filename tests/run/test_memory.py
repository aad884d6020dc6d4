"""Tests of the estimated bytes of an update, against sums by hand and the compiled program."""

import jax
import jax.numpy as jnp
import pytest

from distill_jax.diffusion.spec import image_spec
from distill_jax.models import NETWORKS
from distill_jax.run.memory import peak_bytes

X = jax.ShapeDtypeStruct((1000,), jnp.float32)
SIZE = 4000


def peak(function, *args):
    return peak_bytes(jax.make_jaxpr(function)(*args).jaxpr)


def flip(x):
    return jax.lax.rev(x, (0,))


def test_a_result_lives_until_its_last_use():
    assert peak(flip, X) == SIZE
    # A result and the next one, which is computed from it.
    assert peak(lambda x: flip(flip(flip(x))), X) == 2 * SIZE
    # The first result lives until the end.
    assert peak(lambda x: jnp.dot(y := flip(x), flip(flip(y))), X) == 3 * SIZE


def test_views_take_no_memory_and_keep_their_array_alive():
    assert peak(lambda x: flip(flip(x).reshape(10, 100)).T, X) == 2 * SIZE

    def function(x):
        late = flip(x).reshape(10, 100)
        return flip(flip(flip(x))) @ late.reshape(1000)

    assert peak(function, X) == 3 * SIZE
    assert peak(lambda x: flip(jnp.zeros(1000)), X) == SIZE


def test_elementwise_operations_are_fused_with_their_only_user():
    assert peak(lambda x: flip(jnp.sin(-flip(x))), X) == 2 * SIZE
    # The sine is used twice, so it is written to memory; the product is one number.
    assert peak(lambda x: jnp.dot(flip(y := jnp.sin(x)), y), X) == 2 * SIZE + 4


def test_a_loop_takes_one_round_and_its_stacked_results():
    def function(x):
        return jax.lax.scan(lambda c, _: (flip(flip(c)), c), x, length=7)

    # The last carry, seven stacked carries, and two results within a round.
    assert peak(function, X) == (1 + 7 + 2) * SIZE


def test_a_compiled_part_counts_once():
    assert peak(jax.jit(lambda x: flip(flip(x))), X) == 2 * SIZE


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_activations_of_a_transformer_are_those_of_the_compiled_gradient(remat):
    """Compares the growth with the batch; XLA fuses and reorders, so the estimate is larger."""
    options = {"patch": 2, "width": 64, "blocks": 4, "heads": 2, "remat": remat}
    network = NETWORKS["dit"](image_spec((16, 16, 1), 3, 1), **options)

    def given(batch):
        shapes = ((batch, 16, 16, 1), jnp.float32), ((batch,), jnp.float32), ((batch,), jnp.int32)
        z, t, label = (jax.ShapeDtypeStruct(*shape) for shape in shapes)
        return z, t, {"label": label}

    params = jax.eval_shape(network.init, jax.random.key(0), *given(2))
    gradient = jax.grad(lambda params, *given: jnp.mean(network.apply(params, *given) ** 2))

    def compiled(batch):
        program = jax.jit(gradient).lower(params, *given(batch)).compile()
        return program.memory_analysis().temp_size_in_bytes

    estimate = (peak(gradient, params, *given(48)) - peak(gradient, params, *given(16))) / 32
    assert 0.9 < estimate / ((compiled(48) - compiled(16)) / 32) < 1.5
