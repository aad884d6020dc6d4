"""Tests of benchmarks/accelerator.py, at smoke size, and of its decisions."""

import json
import os
import signal
import subprocess
import sys

import jax
import pytest

from benchmarks import accelerator, accelerator_table
from benchmarks.accelerator_update import load_config, planned, rows_of
from distill_jax.models.build import abstract_params
from distill_jax.run import costs
from tests.toys import ROOT, inputs_of

# Three calls of the command. Measurements run in this process, because a start takes seconds.
CALLS = """
import json, pathlib, sys
from benchmarks import accelerator

started, seen = [], []


def start(measure, task, seconds, out, environment=()):
    started.append(measure)
    accelerator.one(measure, task, str(out / "result.json"))
    return {**json.loads((out / "result.json").read_text()), "seconds": 0.0}


accelerator.start = start
out = pathlib.Path(sys.argv[1])
for minutes, report in ((0.01, 1), (0.01, 0), (10, 1)):
    flags = f"--size=smoke --minutes={minutes} --report_minutes={report} --out={out}"
    sys.argv[1:] = [*flags.split(), "--rows=SD 1.5, 4 calls, 512|CIFAR"]
    started.clear()
    accelerator.main()
    seen.append((list(started), (out / "table.md").read_text()))
print(json.dumps(seen))
"""


def cells_of(table):
    """Returns the rows of a Markdown table, as cells by the titles of its columns."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    titles, _, *rows = ([cell.strip() for cell in line[1:-1].split("|")] for line in lines)
    assert rows and all(len(row) == len(titles) for row in rows)
    return [dict(zip(titles, row, strict=True)) for row in rows]


def test_a_second_call_measures_nothing_again_and_goes_on_training(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", CALLS, str(tmp_path)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (first, table), (second, after), (third, end) = json.loads(result.stdout.splitlines()[-1])
    device, update = "accelerator_update:device", "accelerator_update:update"
    sample = "accelerator_sample:sample"
    train, draw = "accelerator_train:train", "accelerator_train:draw"
    assert first == [device, sample, update, train, draw]
    assert (second, third) == ([device, train], [device, train, draw])
    rows = cells_of(table)
    assert sorted(map(str, cells_of(after))) == sorted(map(str, rows))
    for row in rows:
        if row["with"] != "JAX":
            assert row["note"] == f"{row['with']} not installed"
            continue
        for name in ("compile s", "updates/s", "images/s"):
            assert float(row[name].replace(",", "")) > 0, name
        assert row["MFU"] == "unknown" and row["peak memory"].endswith(" GiB host")
    assert [row["with"] for row in rows] == ["JAX", "diffusers", "JAX", "PyTorch"]
    for text, done in ((table, 1), (after, 2), (end, 3)):
        assert f"train a mixture: {done} of 3 updates of s00_teacher" in text
    assert (tmp_path / "report" / "s00_teacher" / "grid.png").exists()
    assert "| teacher | s00_teacher |" in (tmp_path / "report" / "report.md").read_text()


def measured(**speeds):
    return {
        int(batch[1:]): {"status": "measured", "batch": int(batch[1:]), "images_per_second": speed}
        for batch, speed in speeds.items()
    }


NO_ROOM = {"status": "does not fit"}


@pytest.mark.parametrize(
    ("tried", "grows", "wanted"),
    [
        ({}, True, 32),
        (measured(b32=100), True, 64),
        (measured(b32=100, b64=106), True, 128),
        (measured(b32=100, b64=104), True, None),
        ({**measured(b32=100), 64: NO_ROOM}, True, None),
        ({32: NO_ROOM}, False, 16),
        ({32: NO_ROOM, **measured(b16=9)}, True, None),
        ({1: NO_ROOM}, True, None),
        (measured(b32=100), False, None),
        ({32: {"status": "not installed"}}, True, None),
    ],
)
def test_a_batch_is_doubled_until_it_gains_too_little_and_halved_until_it_fits(
    tried, grows, wanted
):
    assert accelerator.next_batch(tried, 32, grows) == wanted


def test_a_row_whose_batch_is_that_of_another_waits_for_it():
    assert accelerator.best_batch([]) is None
    assert accelerator.next_batch({}, None, True) is None
    lines = measured(b32=100, b64=140, b128=130).values()
    assert accelerator.best_batch(lines) == 64


def test_every_row_names_a_stage_of_its_config_and_a_row_that_comes_before():
    names = []
    for row in accelerator.ROWS:
        task = {"config": "latents", "stage": "s01", **row.task}  # Of rows that sample.
        for size in (task["size"], "smoke"):
            stages = load_config(task["config"], size).stages
            assert any(name.startswith(task["stage"] + "_") for name in stages), row.name
        assert isinstance(row.batch, int) or row.batch in names
        names.append(row.name)


def test_the_update_of_stable_diffusion_has_the_latents_and_texts_that_it_takes():
    run, stage = planned("latents", "s01", "smoke", 2)
    *_, batch = costs.arguments(run, stage)
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), (batch.x, batch.cond))
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), rows_of(run)[1:]) == like


def test_the_full_size_transformer_has_130_million_parameters():
    _, stage = planned("dit", "s00", "full", 8)
    shapes = abstract_params(stage.roles.student, inputs_of(stage.method))
    assert 1.25e8 < sum(leaf.size for leaf in jax.tree.leaves(shapes)) < 1.35e8


def test_a_timeout_and_a_failure_of_a_process_are_distinguished(tmp_path):
    slow = accelerator.start("accelerator_update:device", {}, 0.05, tmp_path)
    assert slow["status"] == "timed out" and slow["seconds"] < 10
    wrong = accelerator.start("accelerator_table:no_such_function", {}, 60, tmp_path)
    assert wrong["status"] == "failed"
    assert "no_such_function" in (tmp_path / "log.txt").read_text()
    assert accelerator.fate(-signal.SIGKILL) == "does not fit"


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory")]
)
def test_out_of_memory_is_a_result_and_other_errors_are_not(error, monkeypatch, tmp_path):
    def raising():
        raise error

    monkeypatch.setattr(accelerator_table, "note", raising)
    accelerator.one("accelerator_table:note", {}, str(tmp_path / "found.json"))
    assert json.loads((tmp_path / "found.json").read_text()) == {"status": "does not fit"}
    error = ValueError("another")
    with pytest.raises(ValueError, match="another"):
        accelerator.one("accelerator_table:note", {}, str(tmp_path / "found.json"))


def test_the_fastest_batch_is_marked_and_what_did_not_fit_is_named():
    line = {
        "row": "a network",
        "measure": "accelerator_update:update",
        "device": "NVIDIA H100 80GB HBM3",
        "count": 1,
        "size": "full",
        "seconds": 1.0,
        "parameters": 1_000,
        "dtype": "bfloat16",
        "compile_seconds": 12.3,
        "updates_per_second": 2.0,
        "mfu": 0.4321,
        "peak_bytes": 3 * 2**30,
        "peak_of": "device",
    }
    lines = [
        {**line, **found, "asked": found["batch"]}
        for found in (*measured(b32=64.0, b64=128.0).values(), {**NO_ROOM, "batch": 128})
    ]
    here = {"device": line["device"], "count": 1, "jax": "0", "torch": None, "diffusers": None}
    rows = cells_of(accelerator_table.as_table(lines, here))
    assert [row["note"] for row in rows] == ["", "best batch", "does not fit"]
    assert rows[0]["MFU"] == "43.2%" and rows[0]["peak memory"] == "3.00 GiB"


def test_lines_cut_short_by_a_kill_are_passed_over(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"row": "a"}\n{"row": "b", "meas')
    assert accelerator.read_lines(tmp_path / "rows.jsonl") == [{"row": "a", "old": True}]


@pytest.mark.parametrize(
    ("config", "stage", "size"), [("dit", "s00", "smoke"), ("cifar10_guided", "s00", "smoke")]
)
def test_the_twins_in_pytorch_give_the_output_of_our_networks(config, stage, size):
    pytest.importorskip("torch")
    from benchmarks import accelerator_torch as twins
    from benchmarks.accelerator_update import filled

    run, stage = planned(config, stage, size, 2)
    params = filled(stage.shapes["student"])
    model = twins.twin_of(stage, params)
    assert twins.disagreement(run, stage, params, model) < twins.AGREE
