"""Contracts: what holds for every entry of METHODS."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.binding import initial_params
from distill_jax.methods import METHODS, Nets
from distill_jax.plan import Bind
from distill_jax.train import Rates, make_update, new_state, optimizer
from distill_jax.typing import Batch
from tests.toys import filled, tiny_binding

SHAPE = (4, 4, 1)
METHOD = {
    "diffusion": METHODS["diffusion"](num_steps=4),
    "encoder": METHODS["encoder"](num_steps=4, w_range=(0.0, 4.0)),
    "guided": METHODS["guided"](num_steps=4),
    "progressive": METHODS["progressive"](num_steps=4, w_range=(0.0, 4.0)),
    "stochastic": METHODS["stochastic"](num_steps=4, w_range=(0.0, 4.0)),
}
TEACHER = {
    "encoder": METHOD["guided"],
    "guided": METHOD["diffusion"],
    "progressive": METHOD["guided"],
    "stochastic": METHOD["guided"],
}
RATES = Rates(1e-2, 0, 1.0, 10, 0.5)
TX = optimizer(0.9, 0.99, 1.0)
BATCH = Batch(
    jax.random.uniform(jax.random.key(0), (6, *SHAPE), minval=-1),
    {"label": jnp.asarray([0, 1, 2, 0, 1, 2], jnp.int32)},
    {"label": jnp.full((6,), 3, jnp.int32)},
)


def identity(tree):
    return tree


def one_iteration(name):
    """State before and after, with the metrics, and the frozen networks."""
    method, binding = METHOD[name], tiny_binding()
    teacher = TEACHER.get(name)
    params = filled(initial_params(jax.random.key(1), binding, method))
    frozen = {}
    if teacher is not None:
        frozen["teacher"] = filled(initial_params(jax.random.key(2), binding, teacher))
    bind = Bind(binding, None if teacher is None else binding)
    state = new_state(jax.random.key(3), {"student": params}, TX)
    before = jax.tree.map(np.array, (state.params, state.ema, frozen))
    for i in range(len(method.phases)):
        update = make_update(method.phases, i, bind, TX, identity)
        given = jax.tree.leaves((state.params, state.opt, state.ema))
        state, metrics = update(method, RATES, state, frozen, BATCH)
        assert all(leaf.is_deleted() for leaf in given), "the state is donated"
    return before, state, metrics, frozen


def test_every_method_is_tried_here():
    assert METHOD.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_one_iteration_changes_the_trained_roles_and_nothing_else(name):
    (params, ema, frozen), state, metrics, frozen_after = one_iteration(name)
    trained = {phase.trains for phase in METHOD[name].phases}
    assert trained == set(state.params)
    for role in trained:
        changed = jax.tree.map(
            lambda a, b: not np.array_equal(a, b), params[role], state.params[role]
        )
        assert all(jax.tree.leaves(changed)), changed
    jax.tree.map(np.testing.assert_array_equal, frozen, frozen_after)
    mean = jax.tree.map(lambda e, p: 0.5 * e + 0.5 * p, ema, state.params["student"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), mean, state.ema)
    assert int(state.step) == 1
    assert np.isfinite([float(metrics["loss"]), float(metrics["grad_norm"])]).all()


@pytest.mark.parametrize("name", METHODS)
def test_the_numbers_of_a_method_are_traced(name):
    method = METHOD[name]
    leaves, structure = jax.tree.flatten(method)
    assert float(method.num_steps) in map(float, leaves)
    if method.w_range is not None:
        assert len(leaves) == 3
    assert jax.tree.unflatten(structure, leaves) == method


@pytest.mark.parametrize("name", METHODS)
def test_loss_is_pure(name):
    method, binding = METHOD[name], tiny_binding()
    params = filled(initial_params(jax.random.key(1), binding, method))
    nets = Nets(binding(params), binding(params))
    if name == "guided":
        teacher = filled(initial_params(jax.random.key(2), binding, METHOD["diffusion"]))
        nets = Nets(binding(params), binding(teacher))
    values = [method.phases[0].loss(method, jax.random.key(5), BATCH, nets)[0] for _ in range(2)]
    other = method.phases[0].loss(method, jax.random.key(6), BATCH, nets)[0]
    assert values[0] == values[1] != other


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("num_steps", [0, -1, 2.5])
def test_a_number_of_steps_that_is_no_whole_number_from_one_is_refused(name, num_steps):
    method = dataclasses.replace(METHOD[name], num_steps=num_steps)
    teacher = TEACHER.get(name)
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}"):
        method.check(teacher)


@pytest.mark.parametrize("name", METHODS)
def test_an_unknown_weighting_is_refused_with_the_known_ones(name):
    method = dataclasses.replace(METHOD[name], weighting="sn")
    with pytest.raises(ValueError, match="'sn'; known: constant, snr, snr_trunc, snr_plus_one"):
        method.check(TEACHER.get(name))
