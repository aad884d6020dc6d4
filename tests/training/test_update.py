import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from distill_jax.methods import Phase
from distill_jax.run import plan
from distill_jax.training.update import (
    Rates,
    TrainState,
    make_iterations,
    make_update,
    new_state,
    optimizer,
)
from distill_jax.typing import Batch
from tests.toys import ROOT, make_batch, smoke_config

TX = optimizer(0.9, 0.99, 1.0)
SGD = optax.identity()
RATES = Rates(1e-2, 0, 1.0, 10, 0.5)


def test_learning_rate_rises_over_the_warmup_and_anneals_linearly():
    rates = Rates(learning_rate=2.0, warmup=4, decay_to=0.0, steps=10, ema_decay=0.0)
    got = [float(rates.at(jnp.asarray(step))) for step in (0, 1, 3, 5, 9)]
    np.testing.assert_allclose(got, [0.5, 0.9, 1.4, 1.0, 0.2], rtol=1e-6)
    flat = Rates(2.0, 0, 1.0, 10, 0.0)
    np.testing.assert_allclose([float(flat.at(jnp.asarray(s))) for s in (0, 9)], [2, 2])


def test_optimizer_clips_by_global_norm_and_starts_like_adam():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    grads = {"a": jnp.asarray([30.0, 0.0]), "b": jnp.asarray(-40.0)}
    updates, _ = TX.update(grads, TX.init(params), params)
    # The first Adam step is the sign of the gradient, whatever its size.
    np.testing.assert_allclose(updates["a"], [1, 0], atol=1e-6)
    np.testing.assert_allclose(updates["b"], -1, atol=1e-6)


def test_every_network_has_its_own_norm_clip_and_decay():
    def loss(role, slope):
        return lambda method, key, batch, nets: (slope * nets[role]["a"].sum(), {})

    # Gradients of norm 5 and 0.5, where the largest allowed norm is 1.
    phases = (Phase("fake", loss("fake", 2.5)), Phase("student", loss("student", 0.25)))
    params = {role: {"a": jnp.ones(4)} for role in ("student", "fake")}
    state, rates = new_state(jax.random.key(0), params, TX), RATES._replace(weight_decay=0.5)
    batch = make_batch(None, {}, {"label": jnp.zeros(1, jnp.int32)})
    for index in range(2):
        update = make_update(phases, index, identity, TX)
        state, _ = update(None, rates, state, {}, batch)
    for role, norm in (("fake", 1.0), ("student", 0.5)):
        # Adam's first moment is a tenth of the gradient; its step is 1, plus decay times 1.
        mean = optax.tree.get(state.opt[role], "mu")["a"]
        np.testing.assert_allclose(np.linalg.norm(mean), 0.1 * norm, rtol=1e-5)
        np.testing.assert_allclose(state.params[role]["a"], 1 - 1e-2 * (1 + 0.5), rtol=1e-5)


def test_a_new_state_shares_no_memory_with_its_parameters():
    params = {"student": {"a": jnp.ones((3,))}}
    state = new_state(jax.random.key(0), params, TX)
    assert isinstance(state, TrainState)
    pointers = [
        x.unsafe_buffer_pointer()
        for x in (params["student"]["a"], state.params["student"]["a"], state.ema["a"])
    ]
    assert len(set(pointers)) == 3


def autoencode(method, key, batch, nets):
    """A loss that is a mean over the batch, and that uses the key only for a metric."""
    x = batch.x.reshape(len(batch.x), -1)
    y = jnp.tanh(x @ nets["student"]["in"]) @ nets["student"]["out"]
    return jnp.mean((y - x) ** 2), {"mean": x.mean(), "drawn": jax.random.uniform(key)}


def identity(tree):
    return tree


def wide_update(microbatches, width=64, layout=None):
    phases = (Phase("student", autoencode),)
    return make_update(phases, 0, identity, SGD, layout, 0, microbatches)


def wide_arguments(width=64, rows=64):
    rng = np.random.default_rng(0)
    shapes = {"in": (16, width), "out": (width, 16)}
    params = {name: jnp.asarray(0.1 * rng.normal(size=s), "float32") for name, s in shapes.items()}
    x = jnp.asarray(rng.normal(size=(rows, 4, 4, 1)), "float32")
    state = new_state(jax.random.key(1), {"student": params}, SGD)
    return None, RATES, state, {}, make_batch(x, {}, {"label": jnp.zeros(rows, jnp.int32)})


def test_microbatches_change_only_the_rounding_of_a_mean_over_the_batch():
    (one, whole), (four, parts) = (wide_update(m)(*wide_arguments()) for m in (1, 4))
    for name in ("loss", "grad_norm", "mean"):
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-5, atol=1e-7)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(four.params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    assert int(four.step) == 1


def test_each_microbatch_has_a_key_of_its_own():
    arguments = wide_arguments()
    key = jax.random.fold_in(jax.random.fold_in(arguments[2].key, 0), 0)
    drawn = [float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(4)]
    assert len(set(drawn)) == 4
    _, metrics = wide_update(4)(*arguments)
    np.testing.assert_allclose(metrics["drawn"], np.mean(drawn), rtol=1e-6)


def test_microbatches_need_less_memory_for_activations():
    def temporary(microbatches):
        arguments = wide_arguments(width=256, rows=1024)
        lowered = wide_update(microbatches).lower(*arguments)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(8) < 0.3 * temporary(1)


def moved_between_devices():
    """Returns collectives, except sums, in an update of two microbatches on two devices."""
    from distill_jax.runtime.sharding import make_layout

    layout = make_layout({"data": -1})
    arguments = list(wide_arguments())
    arguments[2] = jax.device_put(arguments[2], layout.replicated)
    arguments[4] = jax.device_put(arguments[4], layout.batch)
    program = wide_update(2, layout=layout).lower(*arguments).compile().as_text()
    assert "all-reduce" in program
    names = ("all-gather", "all-to-all", "collective-permute")
    return [name for name in names if name in program]


def test_microbatches_move_no_rows_between_devices():
    code = "from tests.training.test_update import *; print(json.dumps(moved_between_devices()))"
    command = [
        sys.executable,
        "-c",
        "import jax; jax.config.update('jax_num_cpu_devices', 2); " + code,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_a_loss_gets_the_finished_share_of_the_iterations():
    def loss(method, key, batch, nets):
        return nets["student"]["a"].sum(), {"share": batch.progress}

    update = make_update((Phase("student", loss),), 0, identity, SGD)
    state = new_state(jax.random.key(0), {"student": {"a": jnp.ones(4)}}, SGD)
    for expected in (0.0, 0.1, 0.2):  # Of 10 iterations.
        state, metrics = update(None, RATES, state, {}, make_batch(None, {}, {"a": jnp.ones(1)}))
        assert float(metrics["share"]) == pytest.approx(expected)


def test_images_may_come_as_bytes():
    arguments = wide_arguments()
    x = jnp.asarray(np.random.default_rng(1).integers(0, 256, (64, 4, 4, 1)), jnp.uint8)
    from_bytes, _ = wide_update(1)(*arguments[:4], arguments[4]._replace(x=x))
    arguments = wide_arguments()
    numbers = x.astype(jnp.float32) / 127.5 - 1
    from_numbers, _ = wide_update(1)(*arguments[:4], arguments[4]._replace(x=numbers))
    for a, b in zip(*map(jax.tree.leaves, (from_bytes.params, from_numbers.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def noisy(role):
    """Returns a role's loss that depends on variant, key, batch and the other role."""

    def loss(method, key, batch, nets, turn):
        x = batch.x.reshape(len(batch.x), -1) + jax.random.normal(key, (16,))
        y = jnp.tanh(x @ nets["student"]["in"] + turn) @ nets["fake"]["out"]
        label = batch.cond["label"][:, None] - batch.null["label"][:, None]
        return jnp.mean((y - label) ** 2), {"drawn": x.mean()}

    loss.__qualname__ = f"noisy_{role}"
    return loss


def test_several_iterations_in_one_call_are_those_one_by_one():
    phases = (Phase("fake", noisy("fake"), 2, 2), Phase("student", noisy("student"), variants=2))
    rng = np.random.default_rng(0)
    params = wide_arguments()[2].params["student"]
    x = jnp.asarray(rng.normal(size=(3, 3, 8, 4, 4, 1)), "float32")  # Iterations, updates, rows.
    label = jnp.arange(72).reshape(3, 3, 8)
    null = {"label": jnp.full(1, 5)}

    def fresh():
        return new_state(jax.random.key(3), {"student": params, "fake": params}, TX)

    state, losses = fresh(), []
    for n in range(3):
        left = iter(range(3))
        for i, phase in enumerate(phases):
            update = make_update(phases, i, identity, TX, None, n % 2)
            for repeat in range(phase.updates_per_iteration):
                j = next(left)
                batch = make_batch(x[n, j], {"label": label[n, j]}, null)
                state, metrics = update(None, RATES, state, {}, batch, repeat)
        losses.append(float(metrics["loss"]))
    several = make_iterations(phases, identity, TX)
    index = np.zeros((8, 3), np.int32)
    rows = [(x[:, j].swapaxes(0, 1), {"label": label[:, j].swapaxes(0, 1)}) for j in range(3)]
    together, metrics = several(
        None, RATES, fresh(), {}, tuple(Batch(index, *r, null) for r in rows)
    )
    assert int(together.step) == int(state.step) == 3
    np.testing.assert_allclose(metrics["loss"], losses, rtol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (state.params, together.params)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"microbatches": 3}, "batch_size 16 is not divisible by .* = 3 x 1; .* multiple of 3"),
        ({"microbatches": 0}, "config.microbatches is 0; expected a whole number from 1"),
        ({"updates_per_call": 2}, "config.save_every is 3; expected a multiple of .*, 2"),
        ({"updates_per_call": 3}, "config.log_every is 2; expected a multiple of .*, 3"),
    ],
)
def test_parts_and_calls_that_do_not_divide_are_refused(changes, message, tmp_path):
    config = smoke_config()
    config.update(changes)
    with pytest.raises(ValueError, match=message):
        plan.make(config, tmp_path)
