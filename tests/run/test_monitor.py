"""Tests of measurements in training: their numbers, the best weights, restarts and warnings."""

import functools
import json
import os
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath

from benchmarks.kill import free_port
from distill_jax.config import pipeline, stage
from distill_jax.evaluation.protocols import make_evaluator
from distill_jax.run import costs, monitor, plan, rehearsal
from distill_jax.run import pipeline as runs
from distill_jax.sampling.batched import Draw
from distill_jax.sampling.loading import load
from distill_jax.storage import checkpoint
from tests.toys import ROOT, smoke_config

FAST = 0.03  # A learning rate at which the distance first falls and then rises.


def never():
    return False


def digits(teacher_rate=1e-3, **evaluate):
    """Returns a chain on digits: a teacher of 20 iterations, and a guided student of 10."""
    config = smoke_config()
    network = stage(
        "teacher", "diffusion", num_steps=4, steps=20, learning_rate=teacher_rate, ema_decay=0.5
    )
    rates = {"steps": 10, "learning_rate": 1e-3, "new": ("w_embed",)}
    student = stage("guided", "guided", w_range=(0.0, 4.0), num_steps=4, **rates)
    config.stages = pipeline(network, student)
    config.evaluate.update({"every": 4, "few": 100, **evaluate})
    return config


evaluator = functools.cache(lambda: make_evaluator({"name": "digits"}))


def planned(workdir, config):
    """Returns the plan of a chain, with the evaluator of all these runs, which takes seconds."""
    run = plan.make(config, epath.Path(workdir))
    vars(run)["evaluator"] = evaluator()
    return run


def trained(workdir, config, stop=never):
    """Trains the chain, and returns its plan."""
    run = planned(workdir, config)
    runs.run(run, stop)
    return run


def lines(workdir, name="s00_teacher"):
    """Returns the lines of a stage's quality.jsonl, without the seconds."""
    found = [json.loads(s) for s in (workdir / name / "quality.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "seconds" not in k} for line in found]


def weights(workdir, name):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(load(workdir / name).params)]


def best_of(workdir, name="s00_teacher"):
    return checkpoint.read_manifest(workdir / name / "final").get("best")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Returns a chain that is measured, and whose last weights are kept."""
    jax.clear_caches()  # Its list of programs must not depend on what other tests have compiled.
    return trained(tmp_path_factory.mktemp("plain"), digits())


@pytest.fixture(scope="module")
def selected(tmp_path_factory):
    """Returns a chain whose best weights are kept, at a rate at which the last are worse."""
    folder = tmp_path_factory.mktemp("selected")
    return trained(folder, digits(FAST, keep_best="distance"))


def test_measurements_change_no_weight_and_compile_no_update(plain, tmp_path):
    trained(tmp_path, digits(every=0))
    for name in ("s00_teacher", "s01_guided"):
        assert weights(plain.workdir, name) == weights(tmp_path, name)
        assert not (tmp_path / name / "quality.jsonl").exists()
    programs = [
        json.loads(line)["function"]
        for line in (plain.workdir / "compilations.jsonl").read_text().splitlines()
    ]
    # The grid is a third: it draws another number of images, of every w.
    assert programs.count("jit(update_diffusion_loss)") == 1
    assert programs.count("jit(_sample)") <= 4


def test_every_line_is_what_the_finished_network_measures_with_the_same_samples(plain):
    for name, last in (("s00_teacher", 20), ("s01_guided", 10)):
        found = lines(plain.workdir, name)
        assert [line["step"] for line in found] == [*range(4, last, 4), last]
        student, draw = load(plain.workdir / name), Draw(100, seed=monitor.SEED)
        row = plain.evaluator.measure(draw(student, 1.0)[0], draw.labels(student), None)
        assert {key: found[-1][key] for key in row} == pytest.approx(row, rel=1e-3)
        assert found[-1]["w"] == 1.0 and found[-1]["num_samples"] == 100
        assert found[-1]["protocol"].startswith("FD-digits: Frechet distance to the training")
        assert f"EMA, {student.trained.sampler}" in found[-1]["protocol"]
    assert best_of(plain.workdir) is None


def test_a_plan_says_the_samples_and_calls_of_the_measurements(plain):
    # Five of the teacher, with 8 guided calls, and three of the student with 4.
    assert (
        "measured in training every 4 iterations: 8 times 100 samples, 5,200 network calls"
        in plan.show(plain)
    )


def test_labels_that_do_not_repeat_are_drawn_again_for_diversity(tmp_path):
    """Ten samples have ten labels, of which one is drawn eight times more."""
    run = trained(tmp_path, digits(few=10, every=10))
    # Two measurements of the teacher, with 8 guided calls, and one of the student with 4.
    assert "3 times 10 samples, 360 network calls" in plan.show(
        planned(tmp_path / "new", digits(few=10, every=10))
    )
    student = load(tmp_path / "s01_guided")
    draw = Draw(10, seed=monitor.SEED).with_repeats(student)
    row = run.evaluator.measure(draw(student, 1.0)[0], draw.asked(student), None, 10)
    (line,) = lines(tmp_path, "s01_guided")
    assert {key: line[key] for key in row} == pytest.approx(row, rel=1e-3)
    assert line["num_samples"] == 10
    assert line["diversity"] > 0


def test_a_plan_counts_the_bytes_of_the_best_weights(plain, selected):
    ema = sum(4 * leaf.size for leaf in jax.tree.leaves(plain.stages[0].shapes["student"]))
    kept, more = (costs.measure(run)["s00_teacher"].kept for run in (plain, selected))
    assert more == {**kept, "best EMA": ema}
    needed = [rehearsal.needed_bytes(run, run.stages[:1]) for run in (plain, selected)]
    assert needed[1] - needed[0] == 3 * ema  # Two states, and the one that is written.


def test_the_best_weights_are_kept_and_the_next_stage_starts_from_them(selected):
    found, best = lines(selected.workdir), best_of(selected.workdir)
    distances = {line["step"]: line["FD-digits"] for line in found}
    assert best["metric"] == "FD-digits"
    assert best["iteration"] == min(distances, key=distances.get) < 20
    assert best["value"] == pytest.approx(min(distances.values()))
    assert best["protocol"] == found[0]["protocol"]
    network, draw = load(selected.workdir / "s00_teacher"), Draw(100, seed=monitor.SEED)
    row = selected.evaluator.measure(draw(network, 1.0)[0], draw.labels(network), None)
    assert row["FD-digits"] == pytest.approx(best["value"], rel=1e-3)
    manifest = checkpoint.read_manifest(selected.workdir / "s01_guided" / "final")
    assert manifest["lineage"]["parent"] == "../../s00_teacher/final"


@pytest.mark.parametrize("polls", [7, 14, 19])
def test_a_killed_run_keeps_the_same_best_weights_bit_for_bit(selected, polls, tmp_path):
    """States are saved every third iteration, and measurements are made every fourth."""
    left = iter([False] * polls)

    def killed():
        return next(left)  # Which raises StopIteration, and nothing is saved.

    config = digits(FAST, keep_best="distance")
    with pytest.raises((StopIteration, RuntimeError)):
        trained(tmp_path, config, killed)
    trained(tmp_path, config)
    for name in ("s00_teacher", "s01_guided"):
        assert weights(tmp_path, name) == weights(selected.workdir, name)
        assert lines(tmp_path, name) == lines(selected.workdir, name)
        assert best_of(tmp_path, name) == best_of(selected.workdir, name)


def test_a_damaged_state_takes_the_best_of_the_one_before_it(selected, tmp_path):
    left = iter([False] * 13)
    config = digits(FAST, keep_best="distance")
    with pytest.raises((StopIteration, RuntimeError)):
        trained(tmp_path, config, lambda: next(left))
    newest = max((tmp_path / "s00_teacher" / "states").iterdir(), key=lambda path: int(path.name))
    path = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:-1])
    trained(tmp_path, config)
    assert (tmp_path / "s00_teacher" / f"damaged_{newest.name}").exists()
    assert weights(tmp_path, "s00_teacher") == weights(selected.workdir, "s00_teacher")


def test_a_larger_recall_is_better(tmp_path):
    trained(tmp_path, digits(keep_best="accuracy"))
    found = {line["step"]: line["accuracy"] for line in lines(tmp_path)}
    assert best_of(tmp_path)["iteration"] == max(found, key=found.get)


def test_a_distance_that_stays_above_twice_its_best_diverges():
    assert not monitor.diverges([])
    assert not monitor.diverges([9.0, 1.0, 2.1])
    assert monitor.diverges([9.0, 1.0, 2.1, 2.2])
    assert not monitor.diverges([1.0, 3.0, 1.9])
    assert not monitor.diverges([1.0, 3.0, 3.0, 2.0])


def test_divergence_is_said_once_in_the_log_and_in_the_record(tmp_path, capsys):
    config = digits(every=1)
    config.stages.s00_teacher.learning_rate = 1.0
    trained(tmp_path, config)
    warned = [line for line in lines(tmp_path) if "warning" in line]
    assert warned, [line["FD-digits"] for line in lines(tmp_path)]
    (said, *_) = re.findall(r"warning: s00_teacher: (.*)", capsys.readouterr().out)
    assert said == warned[0]["warning"]
    assert "more than 2 times the best" in said
    assert "Take a smaller config.stages.s00_teacher.learning_rate (now 1)" in said


REFUSED = {
    "unknown measure": ({"keep_best": "FID"}, "keep_best is 'FID'; expected '', 'distance' or"),
    "nothing measured": ({"every": 0, "keep_best": "distance"}, "config.evaluate.every 0"),
    "too few": ({"few": 3}, "config.evaluate.few is 3; expected a whole number from 10"),
    "negative": ({"every": -1}, "config.evaluate.every is -1; expected a whole number from 0"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_measurement_that_cannot_be_made_is_refused_before_the_training(kind, tmp_path):
    settings, message = REFUSED[kind]
    with pytest.raises(ValueError, match=re.escape(message)):
        rehearsal.rehearse(planned(tmp_path, digits(**settings)))
    assert not (tmp_path / "s00_teacher").exists()


def test_measurements_must_end_where_a_call_ends(tmp_path):
    config = digits(every=4)
    config.updates_per_call, config.log_every, config.save_every = 3, 3, 3
    with pytest.raises(ValueError, match=r"config.evaluate.every is 4; expected a multiple of"):
        plan.make(config, tmp_path)


def test_what_chooses_the_best_weights_must_not_change_in_a_resumed_run(selected, plain):
    with pytest.raises(ValueError, match=r"config.evaluate.few: 100 there, 50 now"):
        runs.run(plan.make(digits(FAST, keep_best="distance", few=50), selected.workdir), never)
    assert not runs.run(plan.make(digits(few=50), plain.workdir), never)


POINTS = """
from distill_jax.config import base, pipeline, stage


def get_config():
    config = base()
    config.data.name = "mixture"
    config.model.update(name="mlp", width=64, blocks=1)
    config.batch_size, config.save_every, config.log_every = 64, 5, 5
    config.evaluate.update(w=(0.0,), num_samples=100, every=5, few=101, keep_best="distance")
    teacher = stage("teacher", "diffusion", num_steps=4, steps=15, learning_rate=1e-2)
    config.stages = pipeline(teacher)
    return config
"""


def test_two_processes_of_four_devices_measure_what_one_of_one_does(tmp_path):
    path, processes = tmp_path / "points.py", []
    path.write_text(POINTS)
    command = [sys.executable, "-m", "distill_jax.main", f"--config={path}"]
    alone = subprocess.run([*command, f"--workdir={tmp_path}/one"], cwd=ROOT, capture_output=True)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    command += [f"--workdir={tmp_path}/two", "--config.mesh.fsdp=4", "--num_processes=2"]
    command.append(f"--coordinator=localhost:{free_port()}")
    for index in range(2):
        with open(tmp_path / f"log{index}", "w") as log:
            environment = {**os.environ, "JAX_NUM_CPU_DEVICES": "4"}
            mine = {"cwd": ROOT, "env": environment, "stdout": log, "stderr": log}
            processes.append(subprocess.Popen([*command, f"--process_id={index}"], **mine))
    codes = [process.wait(120) for process in processes]
    assert codes == [0, 0], "".join((tmp_path / f"log{index}").read_text() for index in range(2))
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert [line["step"] for line in two] == [5, 10, 15]
    for mine, theirs in zip(one, two, strict=True):
        assert theirs["SW2"] == pytest.approx(mine["SW2"], rel=1e-3)
    assert best_of(tmp_path / "two")["iteration"] == best_of(tmp_path / "one")["iteration"]
