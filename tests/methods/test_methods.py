"""Contracts: what holds for every entry of METHODS."""

import dataclasses
import json
import os
import subprocess
import sys

import jax
import pytest

from distill_jax.diffusion.weighting import WEIGHTINGS
from distill_jax.methods import METHODS
from tests.methods.iteration import METHOD, TEACHER, batch_of, networks
from tests.toys import ROOT, check

WEIGHTED = [name for name, method in METHOD.items() if hasattr(method, "weighting")]


def test_every_method_is_tried_here():
    assert METHOD.keys() == METHODS.keys()


@pytest.fixture(scope="module")
def sharded():
    """One iteration of every method on eight devices."""
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, "-m", "tests.methods.iteration"]
    return json.loads(subprocess.run(command, cwd=ROOT, env=env, stdout=-1, check=True).stdout)


@pytest.mark.parametrize("name", METHODS)
def test_one_iteration_changes_the_trained_roles_and_nothing_else(name, sharded):
    got, trained = sharded[name], {phase.trains for phase in METHOD[name].phases}
    assert set(got["trained"]) == trained == set(got["roles"])
    assert got["frozen"], "the teacher is as it was"
    assert got["ema"], "the running mean is of the student alone, once"
    assert got["step"] == 1
    assert got["donated"]
    assert got["finite"]
    assert got["split"], "parameters lie on several devices"


def test_samples_are_the_same_on_devices_that_do_not_divide_their_number(sharded):
    assert sharded["drawn"] == [True, True]


@pytest.mark.parametrize("name", METHODS)
def test_the_numbers_of_a_method_are_traced(name):
    method = METHOD[name]
    leaves, structure = jax.tree.flatten(method)
    fields = {field.name for field in dataclasses.fields(method)}
    if "num_steps" in fields:
        assert float(method.num_steps) in map(float, leaves)
    if method.w_range is not None:
        assert len(leaves) >= 3
    assert jax.tree.unflatten(structure, leaves) == method


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_pure_and_reach_no_frozen_network(name):
    """T7: the gradient in every other network's parameters is not asked for, or is zero."""
    method, (roles, trained, frozen) = METHOD[name], networks(name)
    batch = batch_of(method)
    for phase in method.phases:

        @jax.jit
        def loss(params, key, phase=phase):
            nets = roles({**frozen, **trained, phase.trains: params})
            return phase.loss(method, key, batch, nets)[0]

        keys = [jax.random.key(k) for k in (5, 5, 6)]
        values = [float(loss(trained[phase.trains], key)) for key in keys]
        assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("name", [n for n in METHODS if not hasattr(METHOD[n], "times")])
@pytest.mark.parametrize("num_steps", [0, -1, 2.5])
def test_a_number_of_steps_that_is_no_whole_number_from_one_is_refused(name, num_steps):
    method = dataclasses.replace(METHOD[name], num_steps=num_steps)
    with pytest.raises(ValueError, match=f"num_steps is {num_steps}"):
        check(method, TEACHER.get(name))


@pytest.mark.parametrize("name", WEIGHTED)
def test_an_unknown_weighting_is_refused_with_the_known_ones(name):
    method = dataclasses.replace(METHOD[name], weighting="sn")
    with pytest.raises(ValueError, match=f"'sn'; expected one of {', '.join(WEIGHTINGS)}"):
        check(method, TEACHER.get(name))
