import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.train import (
    Cadence,
    DivergedError,
    Rates,
    StoppedError,
    TrainState,
    graft,
    new_state,
    optimizer,
    train,
)

TX = optimizer(0.9, 0.99, 1.0)


def state_at(step):
    params = {"student": {"a": jnp.ones(())}}
    return new_state(jax.random.key(0), params, TX)._replace(step=jnp.asarray(step))


class Recorder:
    """An iteration that adds one, and everything the loop did with it."""

    def __init__(self, bad_at=None, stop_at=None):
        self.batches, self.logged, self.saved, self.polled = [], [], [], 0
        self.bad_at, self.stop_at = bad_at, stop_at

    def iterate(self, state, batch):
        self.batches.append(batch)
        step = state.step + 1
        loss = jnp.where(step == (self.bad_at or 0), jnp.nan, step * 1.0)
        return state._replace(step=step), {"loss": loss, "grad_norm": jnp.ones(())}

    def log(self, step, values):
        self.logged.append((step, [v["loss"] for v in values]))

    def save(self, step, state):
        self.saved.append((step, int(state.step)))

    def stop(self):
        self.polled += 1
        return self.polled == self.stop_at

    def run(self, cadence, start=0):
        batches = itertools.count(start)
        return train(
            self.iterate, state_at(start), batches, cadence, self.log, self.save, self.stop
        )


def test_the_loop_resumes_after_the_states_step_and_ends_at_the_last():
    recorder = Recorder()
    state = recorder.run(Cadence(steps=7, log_every=100, save_every=100), start=3)
    assert int(state.step) == 7
    assert recorder.batches == [3, 4, 5, 6]


def test_every_metric_is_logged_once_and_one_iteration_late():
    recorder = Recorder()
    recorder.run(Cadence(steps=7, log_every=3, save_every=100))
    assert recorder.logged == [(2, [1, 2]), (5, [3, 4, 5]), (7, [6, 7])]


def test_states_are_saved_on_time_but_not_after_the_last_iteration():
    recorder = Recorder()
    recorder.run(Cadence(steps=8, log_every=100, save_every=4))
    assert recorder.saved == [(4, 4)]


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved():
    recorder = Recorder(bad_at=4)
    with pytest.raises(DivergedError, match="iteration 4: .*loss = nan") as caught:
        recorder.run(Cadence(steps=8, log_every=100, save_every=2))
    assert caught.value.step == 4
    assert recorder.saved == [(2, 2)]


def test_being_asked_to_stop_saves_first():
    recorder = Recorder(stop_at=3)
    with pytest.raises(StoppedError) as caught:
        recorder.run(Cadence(steps=8, log_every=100, save_every=100))
    assert caught.value.step == 3
    assert recorder.saved == [(3, 3)]


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


def test_a_new_state_shares_no_memory_with_what_it_was_made_from():
    params = {"student": {"a": jnp.ones((3,))}}
    state = new_state(jax.random.key(0), params, TX)
    assert isinstance(state, TrainState)
    pointers = [
        x.unsafe_buffer_pointer()
        for x in (params["student"]["a"], state.params["student"]["a"], state.ema["a"])
    ]
    assert len(set(pointers)) == 3


def test_graft_takes_the_teachers_leaves_and_fresh_ones_where_named():
    fresh = {"old": {"k": jnp.zeros(2)}, "w_embed": {"k": jnp.zeros(3)}}
    result = graft(fresh, {"old": {"k": jnp.ones(2)}}, new=("w_embed",))
    np.testing.assert_array_equal(result["old"]["k"], jnp.ones(2))
    np.testing.assert_array_equal(result["w_embed"]["k"], jnp.zeros(3))


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"b": {"k": jnp.ones(2)}}, r"teacher has no parameter a/k \(2,\)"),
        ({"a": {"k": jnp.ones(3)}}, r"a/k is \(3,\) in the teacher and \(2,\) in the student"),
        ({"a": {"k": jnp.ones(2), "z": jnp.ones(1)}}, "student has no parameter a/z"),
    ],
)
def test_graft_names_the_first_leaf_that_does_not_fit(teacher, message):
    with pytest.raises(ValueError, match=message):
        graft({"a": {"k": jnp.zeros(2)}}, teacher)
