"""Contracts that hold for every entry of METHODS."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import jax
import pytest

from distill_jax.diffusion.weighting import WEIGHTINGS
from distill_jax.methods import METHODS
from distill_jax.training.roles import Roles
from distill_jax.training.update import make_update, new_state
from tests.methods.iteration import METHOD, RATES, TEACHER, TX, batch_of, networks
from tests.toys import ROOT, check

WEIGHTED = [name for name, method in METHOD.items() if hasattr(method, "weighting")]


def test_every_method_is_tried_here():
    assert METHOD.keys() == METHODS.keys()


@pytest.fixture(scope="module")
def sharded():
    """Returns the results of one iteration of every method on four devices."""
    env = {**os.environ, "JAX_NUM_CPU_DEVICES": "4"}
    command = [sys.executable, "-m", "tests.methods.iteration"]
    return json.loads(subprocess.run(command, cwd=ROOT, env=env, stdout=-1, check=True).stdout)


@pytest.mark.parametrize("name", METHODS)
def test_one_iteration_changes_the_trained_roles_and_nothing_else(name, sharded):
    got, trained = sharded[name], {phase.trains for phase in METHOD[name].phases}
    assert set(got["trained"]) == trained == set(got["roles"])
    assert got["frozen"], "the teacher is as it was"
    assert got["others"], "an update leaves the roles that it does not train, bit for bit"
    assert got["ema"], "the EMA is of the student only, once"
    assert got["step"] == 1
    assert got["donated"]
    assert got["finite"]
    assert got["split"], "parameters lie on several devices"


def test_samples_are_the_same_on_devices_that_do_not_divide_their_number(sharded):
    assert sharded["drawn"] == [True, True]


@functools.cache
def losses(name):
    """Returns the compiled losses of a method by phase: (method, trained, key) -> value."""
    (roles, trained, frozen), batch = networks(name), batch_of(METHOD[name])

    def loss(phase, method, params, key):
        return phase.loss(method, key, batch, roles({**frozen, **trained, phase.trains: params}))[0]

    phases = METHOD[name].phases
    return [(jax.jit(functools.partial(loss, each)), trained[each.trains]) for each in phases]


@pytest.mark.parametrize("name", METHODS)
def test_a_loss_is_a_function_of_its_arguments(name):
    for loss, params in losses(name):
        values = [float(loss(METHOD[name], params, jax.random.key(k))) for k in (5, 5, 6)]
        assert values[0] == values[1] != values[2]


# A number of each method, and what becomes of the student's loss when it is changed: another value
# from the same program, from another program, or the same value where it is the sampler's.
NUMBERS = {
    "boot": ({"w_range": (0.0, 2.0)}, "traced"),
    "consistency": ({"huber": 0.1}, "constant"),
    "decoupled_dmd": ({"ca_weight": 2.0}, "constant"),
    "dedistill": ({"num_steps": 8}, "sampler's"),
    "diffusion": ({"num_steps": 8}, "sampler's"),
    "dmd2": ({"gan_weight": 0.02}, "constant"),
    "encoder": ({"num_steps": 8}, "traced"),
    "guided": ({"w_range": (0.0, 2.0)}, "traced"),
    "meanflow": ({"num_steps": 8}, "sampler's"),
    "progressive": ({"num_steps": 8, "w_range": (0.0, 2.0)}, "traced"),
    "scm": ({"w_range": (0.0, 2.0)}, "traced"),
    "sid_lsg": ({"alpha": 1.2}, "traced"),
    "stochastic": ({"num_steps": 8, "w_range": (0.0, 2.0)}, "traced"),
    "swd": ({"dmd_weight": 2.0}, "constant"),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_numbers_of_a_chain_are_traced_and_others_are_constants(name):
    change, kind = NUMBERS[name]
    method, (loss, params) = METHOD[name], losses(name)[-1]
    changed = dataclasses.replace(method, **change)
    values = [float(loss(each, params, jax.random.key(5))) for each in (method, changed)]
    assert (values[0] == values[1]) == (kind == "sampler's")
    assert loss._cache_size() == (2 if kind == "constant" else 1)
    fields = {field.name for field in dataclasses.fields(method)}
    leaves = [getattr(method, field) for field in fields & {"num_steps", "w_range", "alpha"}]
    assert len(jax.tree.leaves(method)) == len(jax.tree.leaves(leaves))


FOUND = set()  # Roles whose parameters a gradient was taken in.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def watched(role, params):
    """Returns the parameters; if they get a gradient, the role is added to FOUND."""
    return params


def note(role, _, gradient):
    FOUND.add(role)
    return (gradient,)


watched.defvjp(lambda role, params: (params, None), note)


class Watched(Roles):
    """Roles that record which networks get a gradient."""

    def __call__(self, params):
        return super().__call__({role: watched(role, tree) for role, tree in params.items()})


# Roles that a gradient of a loss would reach, beside the one that is trained: what keeps it from
# them is that the update does not ask for it. The DMD loss stops it at teacher and fake; the
# discriminator of DMD2 and SwD is the fake's.
REACHED = {
    ("boot", "student"): {"teacher"},
    ("consistency", "student"): set(),
    ("decoupled_dmd", "fake"): {"student"},
    ("decoupled_dmd", "student"): set(),
    ("dedistill", "student"): {"teacher"},
    ("diffusion", "student"): set(),
    ("dmd2", "fake"): {"student"},
    ("dmd2", "student"): {"fake"},
    ("encoder", "student"): {"teacher"},
    ("guided", "student"): {"teacher"},
    ("meanflow", "student"): set(),
    ("progressive", "student"): {"teacher"},
    ("scm", "student"): set(),
    ("sid_lsg", "fake"): {"student"},
    ("sid_lsg", "student"): {"teacher", "fake"},
    ("stochastic", "student"): {"teacher"},
    ("swd", "fake"): {"student"},
    ("swd", "student"): {"fake"},
}


@pytest.mark.parametrize("name", METHODS)
def test_an_update_takes_no_gradient_but_that_of_the_role_it_trains(name):
    method, (roles, trained, frozen) = METHOD[name], networks(name)
    watching = Watched(**{f.name: getattr(roles, f.name) for f in dataclasses.fields(roles)})
    state, batch = new_state(jax.random.key(0), trained, TX), batch_of(method)
    for i, phase in enumerate(method.phases):

        def loss(params, phase=phase):
            return phase.loss(method, jax.random.key(0), batch, watching(params))[0]

        FOUND.clear()
        jax.eval_shape(jax.grad(loss), {**frozen, **trained})
        assert {phase.trains} | REACHED[name, phase.trains] == FOUND
        FOUND.clear()
        update = make_update(method.phases, i, watching, TX)
        update.eval_shape(method, RATES, state, frozen, batch)
        assert {phase.trains} == FOUND


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
