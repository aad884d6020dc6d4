import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.config import base, stage
from distill_jax.config import pipeline as chain_of
from distill_jax.methods import METHODS
from distill_jax.models.graft import graft
from distill_jax.run import pipeline, plan
from distill_jax.runtime.sharding import make_layout
from distill_jax.sampling import student
from distill_jax.training.loop import (
    AHEAD,
    Cadence,
    Call,
    DivergedError,
    StoppedError,
    check_finite,
    train,
)
from distill_jax.training.update import new_state, optimizer
from tests.toys import manifest_of, tiny_network

TX = optimizer(0.9, 0.99, 1.0)


def state_at(step):
    params = {"student": {"a": jnp.ones(())}}
    return new_state(jax.random.key(0), params, TX)._replace(step=jnp.asarray(step))


def calls_of(cadence, start):
    """Returns the calls of a cadence; batches are numbers of iterations."""
    return (Call(part, part.start) for part in cadence.iterations(start))


class Metric:
    """A number on a device, which records that the loop has waited for it."""

    def __init__(self, step, waited):
        self.step, self.waited = step, waited

    def block_until_ready(self):
        self.waited.append(self.step)
        return self

    def __array__(self, dtype=None, copy=None):
        return np.zeros((), dtype)


def test_the_host_is_at_most_two_calls_ahead_of_the_device():
    begun, waited = [], []

    def iterate(state, call):
        assert waited == list(range(max(0, len(begun) - AHEAD)))
        begun.append(call.batches)
        return state, {"loss": Metric(call.batches, waited)}

    cadence = Cadence(steps=12, log_every=100, save_every=100)
    train(iterate, state_at(0), calls_of(cadence, 0), cadence)
    assert begun == list(range(12))


class Recorder:
    """An iteration that adds one, and that records the calls of the loop."""

    def __init__(self, bad_at=None, stop_at=None):
        self.batches, self.logged, self.saved, self.polled = [], [], [], 0
        self.bad_at, self.stop_at = bad_at, stop_at

    def iterate(self, state, call):
        self.batches.append(call.batches)
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
        calls = calls_of(cadence, start)
        return train(self.iterate, state_at(start), calls, cadence, self.log, self.save, self.stop)


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


@pytest.mark.parametrize("name", ["score_gap", "learning_rate", "weight_norm"])
def test_any_metric_that_is_not_finite_stops_the_run(name):
    cadence = Cadence(steps=2, log_every=1, save_every=1)

    def iterate(state, call):
        return state, {"loss": jnp.ones(()), name: jnp.log(0.0)}

    with pytest.raises(DivergedError, match=f"iteration 1: .*{name} = -inf"):
        train(iterate, state_at(0), calls_of(cadence, 0), cadence)


def test_weights_and_emas_that_are_not_finite_are_neither_saved_nor_finished():
    state = state_at(3)
    check_finite(3, state)
    bad = {"a": jnp.asarray([1.0, jnp.inf])}
    with pytest.raises(DivergedError, match=r"iteration 3: a weight of student = nan$"):
        check_finite(3, state._replace(params={"student": bad, "fake": {"b": jnp.ones(())}}))
    with pytest.raises(DivergedError, match=r"iteration 3: a weight of EMA = nan$"):
        check_finite(3, state._replace(ema=bad))


def test_a_request_to_stop_saves_first():
    recorder = Recorder(stop_at=3)
    with pytest.raises(StoppedError) as caught:
        recorder.run(Cadence(steps=8, log_every=100, save_every=100))
    assert caught.value.step == 3
    assert recorder.saved == [(3, 3)]


def test_calls_end_at_multiples_and_at_the_last_iteration():
    cadence = Cadence(steps=10, log_every=4, save_every=4, per_call=4)
    assert list(cadence.iterations(0)) == [range(4), range(4, 8), range(8, 10)]
    assert list(cadence.iterations(3)) == [range(3, 4), range(4, 8), range(8, 10)]
    assert list(cadence.iterations(10)) == []


class Several(Recorder):
    """A Recorder for calls of several iterations."""

    def iterate(self, state, call):
        count = len(call.iterations)
        losses = state.step + 1.0 + jnp.arange(count)
        losses = jnp.where(losses == (self.bad_at or 0), jnp.nan, losses)
        metrics = {"loss": losses, "grad_norm": jnp.ones(count)}
        return state._replace(step=state.step + count), metrics


def test_calls_of_several_iterations_log_each_of_them_and_save_between_calls():
    recorder = Several()
    cadence = Cadence(steps=8, log_every=4, save_every=6, per_call=2)
    state = recorder.run(cadence, start=3)
    assert int(state.step) == 8
    assert recorder.logged == [(6, [4, 5, 6]), (8, [7, 8])]
    assert recorder.saved == [(6, 6)]
    assert recorder.polled == 3


def test_a_loss_that_is_not_finite_is_found_within_a_call():
    recorder = Several(bad_at=3)
    with pytest.raises(DivergedError, match="iteration 3: ") as caught:
        recorder.run(Cadence(steps=4, log_every=4, save_every=4, per_call=4))
    assert caught.value.step == 3


def test_the_loop_fetches_metrics_only_at_the_log_interval():
    fetched, seen = [], []

    class Loss:
        """A loss that records when its value is fetched."""

        def __init__(self, step):
            self.step = step

        def __array__(self, dtype=None, copy=None):
            fetched.append(self.step)
            return np.asarray(1.0)

    def iterate(state, call):
        seen.append(len(fetched))
        return state, {"loss": Loss(call.iterations.stop)}

    recorder = Recorder()
    cadence = Cadence(steps=7, log_every=3, save_every=100)
    recorder.iterate = iterate
    recorder.run(cadence)
    assert seen == [0, 0, 0, 2, 2, 2, 5]
    assert fetched == [1, 2, 3, 4, 5, 6, 7]


def test_graft_takes_the_teachers_leaves_and_fresh_ones_where_named():
    fresh = {"old": {"k": jnp.zeros(2)}, "w_embed": {"k": jnp.zeros(3)}}
    result = graft(fresh, {"old": {"k": jnp.ones(2)}}, new=("w_embed",))
    np.testing.assert_array_equal(result["old"]["k"], jnp.ones(2))
    np.testing.assert_array_equal(result["w_embed"]["k"], jnp.zeros(3))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_graft_widens_what_a_teacher_keeps_in_half_precision(dtype):
    result = graft({"a": jnp.zeros(2)}, {"a": jnp.full(2, 0.3, dtype)})
    assert result["a"].dtype == jnp.float32
    np.testing.assert_array_equal(result["a"], jnp.full(2, 0.3, dtype).astype(jnp.float32))


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


def test_a_run_computes_at_the_precision_of_its_config_and_a_student_at_its_manifests(
    tmp_path, monkeypatch
):
    seen = []

    def spy(*given):
        seen.append(jax.config.jax_default_matmul_precision)
        return jnp.zeros((1, 4, 4, 1))

    monkeypatch.setattr(pipeline, "train_stage", spy)
    monkeypatch.setattr(pipeline, "finish", spy)
    monkeypatch.setattr(pipeline, "draw_grids", spy)
    monkeypatch.setattr(student, "run_sampler", spy)
    for precision in ("default", "highest"):
        config = base()
        config.matmul_precision = precision
        config.data.name, config.batch_size = "mixture", 8
        config.model.update(name="mlp", width=8, blocks=1)
        config.stages = chain_of(stage("teacher", "diffusion", steps=1, learning_rate=0.1))
        pipeline.run(plan.make(config, tmp_path / precision), lambda: False)
        network_spec, layout = tiny_network(), make_layout({})
        manifest = manifest_of(METHODS["diffusion"](), matmul_precision=precision)
        drawn = student.Student(manifest, network_spec, {}, layout)
        drawn.sample(jax.random.key(0), 1)
    assert seen == [None] * 4 + ["highest"] * 4
    assert jax.config.jax_default_matmul_precision is None
