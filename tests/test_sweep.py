"""Tests of sweeps: every file is planned, rows come one by one, a second run does nothing."""

import dataclasses
import json
import subprocess
import sys

import pytest
from etils import epath

from distill_jax import sweep
from distill_jax.config import base, halvings, pipeline, smoke, stage
from distill_jax.data import DATASETS
from distill_jax.evaluation.report import rows_table
from distill_jax.run import plan
from distill_jax.sweep import load_sweep, run_sweep
from tests.toys import ROOT

SWEEPS = sorted(path.stem for path in (ROOT / "configs" / "sweeps").glob("*.py"))
RATES = {"steps": 2, "learning_rate": 1e-3}


def huge():
    """Returns digits whose loss is infinite in float32."""
    data = DATASETS["digits"]()
    return dataclasses.replace(data, train=data.train._replace(x=data.train.x * 1e30))


def never():
    return False


def small(*stages, weighting="snr"):
    config = base()
    config.data.name, config.evaluate.w = "digits", (0.0,)
    config.stages = pipeline(*stages)
    config = smoke(config, width=8, blocks=1)
    config.evaluate.num_samples = 20
    return config


def tiny_sweep():
    teacher = small(stage("teacher", "diffusion", num_steps=2, **RATES))
    shared = "{sweep}/teacher/s00_teacher"
    return {"teacher": teacher, "halved": small(*halvings(1, teacher=shared, **RATES))}


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_file_is_planned_at_both_sizes(name, tmp_path):
    path = str(ROOT / "configs" / "sweeps" / f"{name}.py")
    full, small = load_sweep(path), load_sweep(f"{path}:smoke")
    assert list(full) == list(small)
    for configs in (full, small):
        for run, config in configs.items():
            if "{sweep}" not in str(config):
                plan.make(config, tmp_path / run)
    text = (ROOT / "configs" / "sweeps" / f"{name}.py").read_text()
    assert f"distill_jax.sweep configs/sweeps/{name}.py" in text
    assert "arXiv:" in text


def test_rows_are_written_one_by_one_and_a_second_run_does_nothing(tmp_path):
    workdir = epath.Path(tmp_path)
    first, second = tiny_sweep().items()
    rows = run_sweep(dict([first]), workdir, never)
    assert [row["run"] for row in rows] == ["teacher"]
    assert "teacher, N = 2, w = 0" in (workdir / "table.md").read_text()
    rows = run_sweep(dict([first, second]), workdir, never)
    assert [row["run"] for row in rows] == ["teacher", "halved"]
    assert rows[1]["student, N = 1, w = 0"] > 0
    lines = (workdir / "rows.jsonl").read_text()
    kept = [json.loads(line) for line in lines.splitlines()]
    assert [{key: row[key] for key in row if key != "config"} for row in kept] == rows
    assert run_sweep(tiny_sweep(), workdir, never) == rows
    assert (workdir / "rows.jsonl").read_text() == lines
    assert "config" not in (workdir / "table.md").read_text()


def done_row(name, config):
    """Returns the line of a finished run of this config."""
    return json.dumps({"run": name, "x": 0.5, "config": sweep._content(config)}) + "\n"


def test_a_run_whose_config_was_changed_is_refused_and_named(tmp_path):
    workdir, configs = epath.Path(tmp_path), tiny_sweep()
    (workdir / "rows.jsonl").write_text("".join(done_row(*item) for item in configs.items()))
    configs["teacher"].log_every = 1  # Does not affect a row.
    assert [row["x"] for row in run_sweep(configs, workdir, never)] == [0.5, 0.5]
    configs["halved"].stages.s00_n0001.learning_rate = 2e-3
    configs["halved"].evaluate.num_samples = 30
    with pytest.raises(ValueError, match="has rows of other configs") as caught:
        run_sweep(configs, workdir, never)
    assert str(caught.value).splitlines()[1:] == [
        "  halved, config.evaluate.num_samples: 20 there, 30 now",
        "  halved, config.stages.s00_n0001.learning_rate: 0.001 there, 0.002 now",
        "give the changed runs other names, or choose another --workdir",
    ]


def test_a_torn_line_and_runs_that_the_file_no_longer_has_are_passed_over(tmp_path):
    workdir, configs = epath.Path(tmp_path), tiny_sweep()
    whole = "".join(done_row(*item) for item in configs.items())
    (workdir / "rows.jsonl").write_text(whole + '{"run": "third", "x": 0.')
    del configs["teacher"]
    assert run_sweep(configs, workdir, never) == [{"run": "halved", "x": 0.5}]
    assert (workdir / "rows.jsonl").read_text() == whole
    assert "teacher" not in (workdir / "table.md").read_text()


def test_a_run_that_diverges_is_a_row_and_not_the_end(tmp_path):
    configs = tiny_sweep()
    configs["teacher"].data = {"name": "tests.test_sweep:huge"}
    configs = {"bad": configs["teacher"], "good": tiny_sweep()["teacher"]}
    rows = run_sweep(configs, epath.Path(tmp_path), never)
    assert rows[0]["diverged"].startswith("iteration 1")
    assert rows[1]["teacher, N = 2, w = 0"] > 0


def test_the_table_has_a_column_for_everything_that_any_run_has():
    rows = [{"run": "a", "x": 0.12345}, {"run": "b", "y": "no"}]
    assert rows_table(rows).splitlines()[0].split() == ["|", "run", "|", "x", "|", "y", "|"]
    assert "0.123" in rows_table(rows)


def test_a_column_that_the_first_row_lacks_stands_where_its_own_row_has_it():
    rows = [{"run": "a", "calls": 1}, {"run": "b", "l2": 2, "recall": 3, "calls": 4, "variance": 5}]
    titles = rows_table(rows).splitlines()[0].split("|")
    assert [title.strip() for title in titles[1:-1]] == ["run", "l2", "recall", "calls", "variance"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("configs/nothing.py", "configs/nothing.py does not exist"),
        ("configs/digits_guided.py", "is a config, for distill_jax.main"),
    ],
)
def test_a_file_that_is_no_sweep_is_one_message(given, message):
    command = [sys.executable, "-m", "distill_jax.sweep", given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert message in done.stderr


def test_a_file_that_is_no_python_is_refused():
    with pytest.raises(ValueError, match=r"README.md is no .py file; expected a sweep such as"):
        load_sweep(str(ROOT / "README.md"))
