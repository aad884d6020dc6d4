"""Tests of averages that are stored in training, and of networks that are reconstructed of them."""

import functools
import shutil

import jax
import numpy as np
import pytest
from etils import epath

from distill_jax.config import base, pipeline, stage
from distill_jax.run import costs, plan, rehearsal
from distill_jax.run import pipeline as runs
from distill_jax.run.snapshots import reconstruct, size
from distill_jax.runtime import distributed
from distill_jax.sampling.batched import Draw
from distill_jax.sampling.loading import load
from distill_jax.storage import checkpoint, snapshots
from distill_jax.training.loop import StoppedError

STEPS, EVERY = 32, 2


def never():
    return False


def points(**options):
    """Returns a chain on points: a teacher with three averages, and a student with one snapshot."""
    config = base()
    config.data.name = "mixture"
    config.model.update(name="mlp", width=8, blocks=1)
    config.batch_size, config.save_every, config.log_every = 8, 10, 10
    config.evaluate.update(w=(0.0,), num_samples=8)
    rates = {"steps": STEPS, "learning_rate": 1e-2, "decay_to": 1.0}
    averages = {"posthoc": (0.05, 0.1, 0.15), "snapshot_every": EVERY}
    one = {"posthoc": (0.1,), "snapshot_every": STEPS}
    config.stages = pipeline(
        stage("teacher", "diffusion", num_steps=4, **rates, **averages),
        stage("half", "progressive", num_steps=2, **rates, **one),
    )
    config.stages.s00_teacher.update(options)
    return config


def alone(**options):
    """Returns the config of the teacher only."""
    config = points(**options)
    del config.stages["s01_half"]
    return config


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns the workdir of a finished chain."""
    workdir = epath.Path(tmp_path_factory.mktemp("points"))
    runs.run(plan.make(points(), workdir), never)
    return workdir


@pytest.fixture
def two(trained, tmp_path):
    """Returns a copy of the teacher's stage with its first two averages only."""
    place = tmp_path / "run" / "s00_teacher"
    shutil.copytree(trained / "s00_teacher", place)
    shutil.rmtree(place / "posthoc" / "0.15")
    return epath.Path(place)


def vector(tree):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])


def average_in(directory, sigma_rel, iteration, like):
    """Returns the numbers of a snapshot."""
    found = {(each.sigma_rel, each.iteration): each for each in snapshots.find(directory)}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
    return vector(snapshots.read(found[sigma_rel, iteration], like, directory.name))


def test_averages_are_stored_every_few_iterations_and_after_the_last(trained):
    found = snapshots.find(trained / "s00_teacher")
    steps = range(EVERY, STEPS + 1, EVERY)
    assert [each[:2] for each in found] == [(s, i) for s in (0.05, 0.1, 0.15) for i in steps]
    assert [each[:2] for each in snapshots.find(trained / "s01_half")] == [(0.1, STEPS)]


def test_another_length_is_that_of_training_to_a_small_relative_error(two, trained):
    found = reconstruct(two, 0.15, two.parent / "long" / "final")
    student = load(two.parent / "long")
    direct = average_in(trained / "s00_teacher", 0.15, STEPS, student.params)
    near = average_in(trained / "s00_teacher", 0.1, STEPS, student.params)
    got = vector(student.params)
    assert np.linalg.norm(got - direct) < 0.003 * np.linalg.norm(direct)
    assert np.linalg.norm(got - direct) < 0.1 * np.linalg.norm(near - direct)
    assert found.snapshots == 32 and found.stage == "s00_teacher"
    assert 0.005 < found.error < 0.01
    told = student.manifest.posthoc
    assert told == {"sigma_rel": 0.15, "iteration": STEPS, "snapshots": 32, "error": found.error}


def test_a_stored_length_comes_back_and_the_network_samples_like_any_other(two):
    reconstruct(two, 0.05, two.parent / "same" / "final")
    student = load(two.parent / "same")
    stored = average_in(two, 0.05, STEPS, student.params)
    np.testing.assert_allclose(vector(student.params), stored, atol=1e-5)
    assert np.isfinite(Draw(4)(student, None)[0]).all()


def test_a_network_outside_the_workdir_refers_to_its_teacher_by_the_whole_path(trained, tmp_path):
    inside, outside = trained / "again" / "final", epath.Path(tmp_path) / "final"
    for out in (inside, outside):
        reconstruct(trained / "s01_half", 0.1, out)
    teacher = str(trained / "s00_teacher" / "final")
    assert checkpoint.read_manifest(inside)["lineage"]["parent"] == "../../s00_teacher/final"
    assert checkpoint.read_manifest(outside)["lineage"]["parent"] == teacher


def test_bfloat16_halves_the_files_and_keeps_two_digits(two, tmp_path):
    run = plan.make(alone(posthoc=(0.05, 0.1), snapshot_dtype="bfloat16"), tmp_path / "half")
    runs.run(run, never)
    reconstruct(run.stages[0].directory, 0.15, two.parent / "half" / "final")
    reconstruct(two, 0.15, two.parent / "long" / "final")
    got, expected = (vector(load(two.parent / name).params) for name in ("half", "long"))
    # Each number is rounded by 2^-9, and the coefficients sum to 1.7 in magnitude.
    assert 0 < np.linalg.norm(got - expected) < 2**-8 * 1.7 * np.linalg.norm(expected)
    whole = plan.make(alone(posthoc=(0.05, 0.1)), tmp_path)
    assert size(run.stages[0]) * 2 == size(whole.stages[0])


def files(directory):
    """Returns the numbers of all snapshots, and of the finished network."""
    params = load(directory).params
    return [
        vector(params).tobytes(),
        *(
            average_in(directory, each.sigma_rel, each.iteration, params).tobytes()
            for each in snapshots.find(directory)
        ),
    ]


def test_a_stopped_run_ends_with_the_same_snapshots_bit_for_bit(trained, tmp_path):
    run = plan.make(alone(), tmp_path)
    directory = run.stages[0].directory
    with pytest.raises(StoppedError):
        runs.run(run, functools.partial(next, iter([False] * 17 + [True] * 9)))
    assert max(each.iteration for each in snapshots.find(directory)) < STEPS
    late = directory / "posthoc" / "0.05" / "28"
    shutil.copytree(directory / "posthoc" / "0.05" / "4", late)  # As after a kill: not yet saved.
    (directory / "posthoc" / "0.1" / "32.orbax-checkpoint-tmp").mkdir()
    runs.run(run, never)
    assert files(directory) == files(trained / "s00_teacher")


def test_without_the_option_there_are_no_copies_and_the_same_network(trained, tmp_path):
    run = plan.make(alone(posthoc=(), snapshot_every=0), tmp_path)
    assert costs.arguments(run, run.stages[0])[2].averages == ()
    assert "post-hoc EMAs" not in costs.measure(run)["s00_teacher"].kept
    runs.run(run, never)
    assert not (tmp_path / "s00_teacher" / "posthoc").exists()
    got, expected = (vector(load(each / "s00_teacher").params) for each in (tmp_path, trained))
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_averages_are_sharded_like_the_ema_and_the_plan_says_their_bytes(tmp_path):
    config = points()
    config.model.width, config.mesh.fsdp = 128, 4
    run = plan.make(config, tmp_path, devices=8)
    teacher, half = (cost.kept for cost in costs.measure(run).values())
    assert teacher["post-hoc EMAs"] == 3 * teacher["EMA"]
    assert half["post-hoc EMAs"] == half["EMA"] == teacher["EMA"]
    state = costs.arguments(run, run.stages[0])[2]
    for average in state.averages:
        assert average == state.ema
    bytes_of = 4 * sum(leaf.size for leaf in jax.tree.leaves(state.ema))
    assert size(run.stages[0]) == 3 * 16 * bytes_of
    line = (
        "s00_teacher stores 3 averages, of sigma_rel 0.05, 0.1, 0.15, 16 times in float32: "
        f"{3 * 16 * bytes_of:,} bytes in s00_teacher/posthoc"
    )
    assert line in plan.show(run)
    less = plan.make(points(posthoc=(), snapshot_every=0), tmp_path)
    more = plan.make(points(), tmp_path)
    needed = [rehearsal.needed_bytes(each, each.stages[:1]) for each in (less, more)]
    assert needed[1] - needed[0] > size(more.stages[0])


@pytest.mark.parametrize("sigma_rel", [0.0, -0.1, 0.289, 5.0, np.nan])
def test_a_length_beyond_all_averages_is_one_message(trained, sigma_rel, tmp_path):
    with pytest.raises(
        ValueError, match=r"^sigma_rel is .*; expected a number from 0.001 to 0.288"
    ):
        reconstruct(trained / "s00_teacher", sigma_rel, tmp_path)


def test_snapshots_that_do_not_suffice_are_one_message(trained, two, tmp_path):
    with pytest.raises(
        ValueError, match=r"wrong by \d\d%: .* has 1 snapshot, after 1 iteration; take"
    ):
        reconstruct(trained / "s01_half", 0.28, tmp_path)
    with pytest.raises(
        ValueError, match=r"wrong by .* 32 snapshots, after 16 iterations; .* 0.05 and"
    ):
        reconstruct(two, 0.01, tmp_path)
    shutil.rmtree(two / "posthoc")
    with pytest.raises(ValueError, match="has no snapshots of averages; train the stage with"):
        reconstruct(two, 0.1, tmp_path)


def test_a_damaged_or_foreign_snapshot_is_one_message(two, trained, tmp_path):
    shutil.rmtree(two / "posthoc" / "0.1" / "8")
    shutil.copytree(trained / "s01_half" / "posthoc" / "0.1" / "32", two / "posthoc" / "0.1" / "8")
    with pytest.raises(ValueError, match="is a snapshot of stage s01_half, not of s00_teacher"):
        reconstruct(two, 0.1, tmp_path)
    (two / "posthoc" / "0.05" / "4" / "checksums.json").unlink()
    with pytest.raises(ValueError, match="is damaged .checksums.json is missing.; move it away"):
        reconstruct(two, 0.1, tmp_path)
    assert not (epath.Path(tmp_path) / "manifest.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"posthoc": (0.05, 0.3)}, "posthoc is .*; expected at most 4 different values in a tuple"),
        ({"posthoc": (0.05, 0.05)}, "posthoc is .*; expected at most 4 different values"),
        ({"posthoc": ()}, r"snapshot_every is 2, and posthoc \(\): expected both, such as"),
        ({"snapshot_every": 0}, "snapshot_every is 0, and posthoc .*: expected both"),
        ({"steps": 10**6}, "snapshot_every is 2, and steps 1,000,000: expected at most 2,000"),
        ({"snapshot_dtype": "int8"}, "snapshot_dtype is 'int8'; expected one of float32, bfloat16"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_their_key(changes, message, tmp_path):
    with pytest.raises(ValueError, match=r"config\.stages\.s00_teacher\." + message):
        plan.make(alone(**changes), tmp_path)


def test_snapshots_lie_between_calls(tmp_path):
    config = alone(snapshot_every=3)
    config.updates_per_call = 10
    with pytest.raises(
        ValueError, match="is 3; expected a multiple of config.updates_per_call, 10"
    ):
        plan.make(config, tmp_path)


def test_only_the_first_process_removes_snapshots(tmp_path, monkeypatch):
    late = epath.Path(tmp_path) / "posthoc" / "0.05" / "8"
    late.mkdir(parents=True)
    monkeypatch.setattr(distributed, "first", lambda: False)
    snapshots.remove_after(epath.Path(tmp_path), 4)
    assert late.exists()
