"""Tests of the digits chain at smoke size: its files, restarts, and results on any devices."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

from benchmarks import pictures
from benchmarks.kill import free_port
from distill_jax.config import halvings, stage
from distill_jax.config import pipeline as pipeline_of
from distill_jax.evaluation import compare, gallery
from distill_jax.run import pipeline, plan
from distill_jax.sampling.loading import load
from distill_jax.storage import checkpoint
from tests.toys import ROOT, smoke_config

STAGES = [
    "s00_teacher",
    "s01_guided",
    "s02_n0032",
    "s03_n0016",
    "s04_n0008",
    "s05_n0004",
    "s06_n0002",
    "s07_n0001",
]
DIGITS = {"name": "digits"}
COMMAND = [sys.executable, "-m", "distill_jax.main", "--config=configs/digits_guided.py:smoke"]


def never():
    return False


def run_main(workdir, *flags, **variables):
    """Runs the command, and returns its exit code and output."""
    command = [*COMMAND, f"--workdir={workdir}", *flags]
    environment = {**os.environ, **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def weights(workdir):
    """Returns all final parameters, by stage and leaf, as bytes."""
    found = {}
    for name in STAGES:
        params = load(workdir / name).params
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            found[name, jax.tree_util.keystr(path)] = np.asarray(leaf).tobytes()
    return found


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def size_of(path):
    with Image.open(path) as image:
        return image.size


def losses(workdir):
    stages = [read_lines(workdir / stage / "scalars.jsonl") for stage in STAGES]
    return [[line["loss"] for line in lines] for lines in stages]


def test_every_stage_leaves_a_network_a_grid_and_its_scalars(chain):
    assert sorted(path.name for path in chain.glob("s*")) == STAGES
    for name in STAGES:
        assert (chain / name / "final" / "manifest.json").exists()
        assert list((chain / name).glob("events.out.tfevents*"))
        steps = [
            json.loads(s)["step"]
            for s in (chain / name / "scalars.jsonl").read_text().split("\n")
            if s
        ]
        assert steps == sorted(set(steps))
        assert steps[-1] == 8
        # 10 classes by 4 strengths, 8x8 images enlarged 6 times with a border of 1.
        assert size_of(chain / name / "grid.png") == (10 * 50, 4 * 50)


def test_the_workdir_and_the_manifests_have_the_commit_that_trained_them(chain):
    started = read_lines(chain / "environment.jsonl")
    for name in STAGES:
        versions = checkpoint.read_manifest(chain / name / "final")["lineage"]["versions"]
        assert {versions["commit"]} <= {each["commit"] for each in started}


def test_only_the_last_stage_still_has_its_states(chain):
    left = {name: len(list((chain / name / "states").glob("*"))) for name in STAGES}
    assert left == {**dict.fromkeys(STAGES, 0), STAGES[-1]: 2}


def test_manifests_have_steps_times_range_and_lineage(chain):
    manifest = checkpoint.read_manifest(chain / "s05_n0004" / "final")
    trained, lineage = manifest["trained"], manifest["lineage"]
    assert trained["sampler"] == {"name": "ddim", "num_steps": 4}
    assert trained["guidance"] == {"w_range": [0.0, 4.0], "fixed_w": 0.0, "null": False}
    assert not trained["all_times"]
    assert lineage["parent"] == "../../s04_n0008/final"
    assert lineage["method"]["name"] == "progressive"
    assert manifest["matmul_precision"] == "default"
    assert manifest["metrics"]["protocol"].startswith("FD-digits: ")
    assert [row["w"] for row in manifest["metrics"]["rows"]] == [0, 1, 2, 4]
    assert checkpoint.read_manifest(chain / "s00_teacher" / "final")["trained"]["all_times"]


def test_the_report_has_a_row_for_every_sampler_number_of_steps_and_w(chain):
    report = json.loads((chain / "report.json").read_text())
    keys = [(row["sampler"], row["num_steps"], row["w"]) for row in report["rows"]]
    steps = (64, 32, 16, 8, 4, 2, 1)
    expected = [
        (sampler, n, w) for w in (0, 1, 2, 4) for sampler in ("teacher", "student") for n in steps
    ]
    assert sorted(keys) == sorted(expected)
    for row in report["rows"]:
        teacher = row["sampler"] == "teacher"
        own = ("FD-digits", "accuracy", "recall", "calls", "seconds_per_image")
        own += ("contrast", "diversity")
        compared = () if teacher and row["num_steps"] == 64 else ("FD-digits-to-teacher", "l2")
        assert set(row) == {"role", "sampler", "stage", "num_steps", "w", *own, *compared}
        assert 0 <= row["recall"] <= 1
        assert row["calls"] == row["num_steps"] * (2 if teacher else 1)
    assert report["floor"]["halves"] > 0
    assert 0.5 < report["real_recall"] < 1
    text = (chain / "report.md").read_text()
    assert "not FID" in text
    assert text.count("grid.png") == len(STAGES)
    assert size_of(chain / "report.png")[0] > 500
    strips = {path.name for path in (chain / "report").iterdir()} - {"same_noise.png"}
    assert len(strips) == len(expected)
    assert size_of(chain / "report" / "s07_n0001-student_0001_w2.png") == (80, 8)
    assert f"]({gallery.FOLDER}/{gallery.SAME_NOISE})" in text


def test_the_picture_of_a_run_has_teacher_and_student_from_the_same_noise(chain, tmp_path):
    panels = pictures.same_noise(chain)
    assert list(panels) == [
        "teacher: 64 steps, 128 network calls",
        "teacher: 1 step, 2 network calls",
        "student: 1 step, 1 network call",
    ]
    student = load(chain)
    for name, x in panels.items():
        assert x.shape == (4, 10, 8, 8, 1), name
    expected = student.sample(jax.random.key(0), 10, np.arange(10), 4.0)
    np.testing.assert_array_equal(panels["student: 1 step, 1 network call"][3], expected)
    pictures.digits_grids(chain, tmp_path / "grids.png")
    assert size_of(tmp_path / "grids.png")[0] > 3 * 10 * 48


def test_the_update_of_all_halvings_is_compiled_once(chain):
    names = [line["function"] for line in read_lines(chain / "compilations.jsonl")]
    for method in ("diffusion", "guided", "progressive"):
        assert names.count(f"jit(update_{method}_loss)") == 1


def test_a_second_run_does_nothing(chain):
    files = [path for path in pathlib.Path(chain).rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    run = plan.make(smoke_config(), chain)
    assert all(stage.finished for stage in run.stages)
    assert plan.show(run).count("done") == len(STAGES)
    assert not pipeline.run(run, never)
    settings = run.config.evaluate
    assert not compare.write_report(chain, DIGITS, settings.to_dict(), never)
    changed = {path.name for path, when in before.items() if path.stat().st_mtime_ns != when}
    assert changed <= {"config.json"}


def test_a_workdir_of_another_config_is_refused_with_the_differences(chain):
    config = smoke_config()
    config.batch_size = 32
    run = plan.make(config, chain)
    with pytest.raises(
        ValueError, match=r"config.batch_size: 16 there, 32 now[\s\S]*--resume=force"
    ):
        pipeline.run(run, never)
    assert json.loads((chain / "config.json").read_text())["batch_size"] == 16


def test_a_chain_without_guidance_is_halved_and_reported(tmp_path):
    config = smoke_config()
    rates = {"steps": 3, "learning_rate": 1e-3}
    teacher = stage("teacher", "diffusion", num_steps=4, label_dropout=0.0, **rates)
    config.stages = pipeline_of(teacher, *halvings(2, 2, **rates))
    workdir = epath.Path(tmp_path / "plain")
    assert pipeline.run(plan.only(plan.make(config, workdir), ["teacher"]), never)
    trained = sorted(path.name for path in workdir.glob("s*"))
    assert trained == ["s00_teacher"]
    config.stages = pipeline_of(teacher, *halvings(2, 1, **rates))  # A round is added.
    assert pipeline.run(plan.make(config, workdir), never)
    settings = {"w": (0.0, 1.0), "num_samples": 20, "ancestral": (0.0, 1.0)}
    assert compare.write_report(workdir, DIGITS, settings, never)
    rows = json.loads((workdir / "report.json").read_text())["rows"]
    keys = [(row["sampler"], row["num_steps"], row["w"], row["calls"]) for row in rows]
    assert {row.get("variance", -1) for row in rows} <= {-1, 0.0, 1.0}
    assert [row for row in rows if "variance" in row] == rows[1:6:2]
    assert keys == [
        ("teacher", 4, 0, 4),
        ("teacher, ancestral", 4, 0, 4),
        ("teacher", 2, 0, 2),
        ("teacher, ancestral", 2, 0, 2),
        ("teacher", 1, 0, 1),
        ("teacher, ancestral", 1, 0, 1),
        ("student", 2, 0, 2),
        ("student", 1, 0, 1),
    ]


def test_a_report_that_was_stopped_goes_on_where_it_was(chain, tmp_path):
    workdir = epath.Path(tmp_path / "digits")
    shutil.copytree(chain, workdir, ignore=shutil.ignore_patterns("states", "report"))
    (workdir / "report.json").unlink()
    settings, polls = smoke_config().evaluate.to_dict(), iter([False] * 8 + [True])
    with pytest.raises(InterruptedError, match="stopped while measuring"):
        compare.write_report(workdir, DIGITS, settings, lambda: next(polls))
    kept = json.loads((workdir / "report.rows.json").read_text())["rows"]
    assert len(kept) == 9
    assert compare.write_report(workdir, DIGITS, settings, never)
    assert not (workdir / "report.rows.json").exists()
    rows, whole = (json.loads((path / "report.json").read_text()) for path in (workdir, chain))
    assert all(row in rows["rows"] for row in kept)  # Rows are measured network by network.
    for row in rows["rows"] + whole["rows"]:
        del row["seconds_per_image"]
    for content in (rows, whole):  # Checksums of the seconds, too.
        del content["files"]["report.md"], content["checksum"]
    assert rows == whole
    names = [
        {path.name: path.read_bytes() for path in (w / "report").iterdir()}
        for w in (workdir, chain)
    ]
    assert names[0] == names[1]


def test_a_stage_that_diverges_names_stage_iteration_and_last_good_state(tmp_path):
    config = smoke_config()
    run = plan.make(config, tmp_path)
    config.stages.s00_teacher.learning_rate = 1e38  # Which a plan refuses.
    with pytest.raises(
        ValueError, match=r"stage s00_teacher diverged at iteration 2: .*nothing was saved"
    ):
        pipeline.run(run, never)
    assert not (tmp_path / "s00_teacher" / "final").exists()


def test_weights_that_the_last_update_made_infinite_are_not_finished(tmp_path):
    config = smoke_config()
    config.stages.s00_teacher.steps = 1
    run = plan.make(config, tmp_path)
    config.stages.s00_teacher.update(learning_rate=1e38, weight_decay=1e10)  # As above.
    with pytest.raises(ValueError, match=r"s00_teacher diverged at iteration 1: a weight of "):
        pipeline.run(run, never)
    assert not (tmp_path / "s00_teacher" / "final").exists()


def wait_for(pattern, workdir, process, seconds=120):
    """Waits until a file matches the pattern, or the process ends."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if list(workdir.glob(pattern)):
            return
        time.sleep(0.01)


@pytest.fixture(scope="module")
def disturbed(chain, tmp_path_factory):
    """Returns a chain that Ctrl-C, SIGTERM and SIGKILL stopped, while training and while saving."""
    workdir = tmp_path_factory.mktemp("disturbed") / "digits"
    codes = []
    for number, pattern in (
        (signal.SIGINT, "s00_teacher/scalars.jsonl"),
        (signal.SIGKILL, "s01_guided/states/*.orbax-checkpoint-tmp"),
        (signal.SIGTERM, "s02_n0032/states/3"),
        (signal.SIGKILL, "s04_n0008/final.partial/params*"),
    ):
        with open(workdir.parent / f"log{len(codes)}", "w") as log:
            command = [*COMMAND, f"--workdir={workdir}"]
            process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
            wait_for(pattern, workdir, process)
            process.send_signal(number)
            codes.append((number, process.wait(60)))
    codes.append((0, run_main(workdir)[0]))
    return workdir, codes


def test_signals_end_the_run_with_their_exit_code_and_a_way_to_go_on(disturbed):
    workdir, codes = disturbed
    for number, code in codes:
        assert code == (-number if number == signal.SIGKILL else 128 + number if number else 0)
    assert "The same command goes on from there" in (workdir.parent / "log0").read_text()


def test_a_disturbed_run_ends_with_the_weights_of_an_undisturbed_one_bit_for_bit(chain, disturbed):
    assert weights(disturbed[0]) == weights(chain)


def test_two_processes_of_four_devices_and_then_one_of_one_have_the_losses_of_one(chain, tmp_path):
    workdir = tmp_path / "digits"
    command = [*COMMAND, f"--workdir={workdir}", "--config.mesh.fsdp=4"]
    command += [f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    environment, processes = {**os.environ, "JAX_NUM_CPU_DEVICES": "4"}, []
    for index in range(2):
        with open(tmp_path / f"log{index}", "w") as log:
            mine = {"cwd": ROOT, "env": environment, "stdout": log, "stderr": log}
            processes.append(subprocess.Popen([*command, f"--process_id={index}"], **mine))
    wait_for("s03_n0016/states/3", workdir, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    codes = [process.wait(120) for process in processes]
    output, other = ((tmp_path / f"log{index}").read_text() for index in range(2))
    assert codes == [128 + signal.SIGTERM] * 2, output + other
    assert "on 8 cpu device(s), mesh: data 2, fsdp 4, tensor 1" in output
    assert "s02_n0032: finished" in output
    assert "finished" not in other
    # One process with one device continues the run of two processes with eight devices.
    code, output = run_main(workdir)
    assert code == 0, output
    # The notice takes time to reach the other process, so the run may stop in a later stage.
    stopped = re.search(r"(s\d\d_n\d+): going on after iteration", output)
    for name, one, moved in zip(STAGES, losses(chain), losses(workdir), strict=True):
        if not (stopped and name == stopped[1]):  # Lines there are means over other iterations.
            np.testing.assert_allclose(moved, one, atol=1e-5)
    x = [load(path).sample(jax.random.key(0), 4, w=1.0) for path in (chain, workdir)]
    np.testing.assert_allclose(x[0], x[1], atol=1e-3)
