"""Runs one iteration of every method on all devices: `python -m tests.methods.iteration`.

Prints a line of JSON: what happened, by method.
"""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.methods import METHODS
from distill_jax.models.build import initial_params
from distill_jax.runtime.sharding import Layout, make_layout
from distill_jax.sampling.student import Student
from distill_jax.training.roles import Roles
from distill_jax.training.update import Rates, make_update, new_state, optimizer
from distill_jax.typing import Batch
from tests.toys import filled, inputs_of, manifest_of, tiny_network

SHAPE = (4, 4, 1)
METHOD = {
    "boot": METHODS["boot"](w_range=(0.0, 4.0)),
    "consistency": METHODS["consistency"](w=0.5, solver="heun"),
    "decoupled_dmd": METHODS["decoupled_dmd"](w=0.5, times=(1.0, 0.5), fake_updates=1),
    "dedistill": METHODS["dedistill"](num_steps=4),
    "diffusion": METHODS["diffusion"](num_steps=4),
    "dmd2": METHODS["dmd2"](gan_weight=0.01, fake_updates=1),
    "encoder": METHODS["encoder"](num_steps=4, w_range=(0.0, 4.0)),
    "guided": METHODS["guided"](num_steps=4),
    "meanflow": METHODS["meanflow"](pairs=0.75),
    "progressive": METHODS["progressive"](num_steps=4, w_range=(0.0, 4.0)),
    "scm": METHODS["scm"](w_range=(0.0, 4.0)),
    "sid_lsg": METHODS["sid_lsg"](kappas=1.5, fake_updates=2),
    "stochastic": METHODS["stochastic"](num_steps=4, w_range=(0.0, 4.0)),
    "swd": METHODS["swd"](times=(1.0, 0.5), fake_updates=2),
}
TEACHER = {
    "boot": METHOD["diffusion"],
    "consistency": METHOD["diffusion"],
    "decoupled_dmd": METHOD["diffusion"],
    "dedistill": METHOD["diffusion"],
    "dmd2": METHOD["diffusion"],
    "encoder": dataclasses.replace(METHOD["guided"], clip_target=False),
    "guided": METHOD["diffusion"],
    "meanflow": METHOD["diffusion"],
    "progressive": METHOD["guided"],
    "scm": METHOD["diffusion"],
    "sid_lsg": METHOD["diffusion"],
    "stochastic": METHOD["guided"],
    "swd": METHOD["diffusion"],
}
RATES = Rates(1e-2, 0, 1.0, 10, 0.5)
TX = optimizer(0.9, 0.99, 1.0)


def batch_of(method, size=8):
    """Returns a batch like those of a run."""
    label = jnp.arange(size, dtype=jnp.int32) % 3
    x = jax.random.uniform(jax.random.key(0), (size, *SHAPE), minval=-1)
    null = {"label": jnp.full((1,), 3, jnp.int32)}
    return Batch(jnp.arange(size), None if method.data_free else x, {"label": label}, null)


def networks(name):
    """Returns roles, trained parameters, and frozen networks, none of them zero anywhere."""
    method, teacher, network_spec = METHOD[name], TEACHER.get(name), tiny_network()
    fake = any(phase.trains == "fake" for phase in method.phases)
    discriminator = method.discriminator if method.has_discriminator else ""
    sampler = teacher.sampler(network_spec.schedule) if method.draws else None
    roles = Roles(network_spec, teacher and network_spec, fake, discriminator, sampler=sampler)
    trained = filled(roles.initial(jax.random.key(1), inputs_of(method), None))
    frozen = {}
    if teacher is not None:
        params = initial_params(jax.random.key(2), network_spec, inputs_of(teacher))
        frozen["teacher"] = jax.tree.map(lambda leaf: 0.9 * leaf, filled(params))
    return roles, trained, frozen


def one_iteration(name):
    """Returns the effect of one iteration on states that are sharded over all devices."""
    method, layout = METHOD[name], make_layout({"data": -1, "fsdp": min(2, jax.device_count())})
    layout = Layout(layout.mesh, min_size=16)
    roles, trained, frozen = networks(name)
    roles = dataclasses.replace(roles, layout=layout)
    state = new_state(jax.random.key(3), trained, TX)
    state, frozen = jax.device_put((state, frozen), layout.shardings((state, frozen)))
    batch = batch_of(method)
    rows = jax.device_put(batch._replace(null={}), layout.batch)
    batch = rows._replace(null=jax.device_put(batch.null, layout.replicated))
    before = jax.tree.map(np.array, (state.params, state.ema, frozen))
    donated, finite, others = True, True, True
    for i, phase in enumerate(method.phases):
        update = make_update(method.phases, i, roles, TX, layout)
        for repeat in range(phase.updates_per_iteration):
            given = jax.tree.leaves((state.params, state.opt, state.ema))
            untouched = jax.tree.map(np.array, without(phase.trains, state))
            state, metrics = update(method, RATES, state, frozen, batch, repeat)
            others &= equal(untouched, without(phase.trains, state))
            donated &= all(leaf.is_deleted() for leaf in given)
            finite &= bool(np.isfinite(list(map(float, metrics.values()))).all())
    params, ema, frozen_before = before
    changed = {
        role: jax.tree.map(lambda a, b: not np.array_equal(a, b), params[role], tree)
        for role, tree in state.params.items()
    }
    leaves = {role: list(map(bool, jax.tree.leaves(tree))) for role, tree in changed.items()}
    mean = jax.tree.map(lambda e, p: 0.5 * e + 0.5 * np.array(p), ema, state.params["student"])
    return {
        "trained": [role for role, moved in leaves.items() if all(moved)],
        "roles": list(leaves),
        "others": others,
        "frozen": equal(frozen_before, frozen),
        "ema": all(
            np.allclose(a, b, rtol=1e-5, atol=1e-7)
            for a, b in zip(jax.tree.leaves(mean), jax.tree.leaves(state.ema), strict=True)
        ),
        "step": int(state.step),
        "donated": donated,
        "finite": finite,
        "split": any(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state.params)),
    }


def without(role, state):
    """Returns parameters and optimizer states of the other roles."""
    return [{k: v for k, v in tree.items() if k != role} for tree in (state.params, state.opt)]


def drawn(name):
    """Returns samples on one device and on all, whose number does not divide the samples'."""
    method, network_spec = METHOD[name], tiny_network()
    manifest = manifest_of(method)
    found = []
    for devices in (jax.devices()[:1], jax.devices()):
        layout = make_layout({"data": -1}, devices)
        params = filled(initial_params(jax.random.key(1), network_spec, inputs_of(method)))
        params = jax.device_put(params, layout.shardings(params))
        student = Student(manifest, network_spec, params, layout)
        found.append(np.asarray(student.sample(jax.random.key(2), 5, w=1.0)))
    return bool(found[0].shape == (5, *SHAPE) and np.allclose(*found, atol=1e-5))


def equal(a, b):
    """Returns whether two trees are equal bit for bit."""
    return all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


if __name__ == "__main__":
    done = {name: one_iteration(name) for name in METHOD}
    json.dump({**done, "drawn": [drawn("progressive"), drawn("stochastic")]}, sys.stdout)
