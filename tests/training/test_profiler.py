import jax
import jax.numpy as jnp
import pytest
from etils import epath

from distill_jax.training.loop import Cadence, Call
from distill_jax.training.profiler import Profile, tracing

STAGES = {"s00_teacher": 30, "s01_guided": 10}


def test_a_profile_is_of_the_first_stage_that_runs_or_of_the_one_named():
    assert Profile.parse("20:25").of(STAGES) == Profile("s00_teacher", 20, 25)
    assert Profile.parse("s01_guided@2:5").of(STAGES) == Profile("s01_guided", 2, 5)


@pytest.mark.parametrize("text", ["20", "20-25", "25:20", "5:5", "s00@", "@1:2", "-1:4", "a b@1:2"])
def test_a_profile_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match=f"--profile is '{text}'; expected FIRST:LAST"):
        Profile.parse(text)


def test_a_resumed_run_accepts_a_profile_that_is_done_or_no_longer_fits(capsys):
    done = {"s00_teacher"}
    assert Profile.parse("s00_teacher@20:25").of(STAGES, done) is None
    assert "s00_teacher is finished, so nothing is traced" in capsys.readouterr().out
    assert Profile.parse("2:5").of(STAGES, done) == Profile("s01_guided", 2, 5)
    assert Profile.parse("20:25").of(STAGES, done) is None
    assert Profile.parse("20:25").of(STAGES, STAGES.keys()) is None


def test_a_profile_of_an_unknown_stage_or_iteration_is_refused():
    with pytest.raises(ValueError, match="'s02'; expected one of s00_teacher, s01"):
        Profile.parse("s02@1:2").of(STAGES)
    with pytest.raises(ValueError, match="is 8:12, but s01_guided has 10 iterations"):
        Profile.parse("s01_guided@8:12").of(STAGES)


@jax.jit
def step(x, batch):
    return jnp.sin(x) + batch, {}


def iterate(x, call):
    return step(x, call.batches)


def run(directory, profile, cadence, done=0):
    x = jnp.zeros(())
    with tracing(profile, iterate, directory) as traced:
        for iterations in cadence.iterations(done):
            x, _ = traced(x, Call(iterations, iterations.start))
    return float(x)


def test_a_trace_is_written_and_the_results_stay(tmp_path):
    cadence, directory = Cadence(8, 4, 4, per_call=2), epath.Path(tmp_path)
    assert run(directory, Profile("s00", 3, 5), cadence) == run(directory, None, cadence)
    assert [path.parent.name for path in tmp_path.rglob("*.xplane.pb")] == ["s00_3_5"]


def test_iterations_that_are_done_are_not_traced(tmp_path, capsys):
    run(epath.Path(tmp_path), Profile("s00", 1, 2), Cadence(8, 4, 4), done=4)
    assert not list(tmp_path.iterdir())
    assert "s00: iteration 2 was done, so nothing is traced" in capsys.readouterr().out


def test_a_run_that_stops_within_a_trace_writes_it(tmp_path):
    with (
        pytest.raises(InterruptedError),
        tracing(Profile("s00", 0, 5), iterate, epath.Path(tmp_path)) as traced,
    ):
        traced(jnp.zeros(()), Call(range(1), 0))
        raise InterruptedError
    assert list(tmp_path.rglob("*.xplane.pb"))
