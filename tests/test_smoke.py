"""Configs at their smoke size, from nothing to the report."""

import json

import jax
import numpy as np
import pytest
from etils import epath

from distill_jax import evaluate, pipeline, plan
from distill_jax.diffusion.analytic import ring
from distill_jax.student import load
from tests.test_configs import CONFIGS, load_config

# The digits chain is tried by the tests of the chain. Of configs that differ in numbers alone one
# is run: cifar10_sid_lsg for cifar10_sid, and two mixtures for the third.
PRESETS = [name for name in CONFIGS if not name.startswith(("digits", "mixture"))]
RUN = [name for name in PRESETS if name != "cifar10_sid"]
MIXTURES = ["mixture_boot", "mixture_dmd2"]


def run_smoke(name, workdir):
    """Runs a config to its report; returns the plan, the report's rows and two samples."""
    _, config = load_config(name, "smoke")
    run = plan.make(config, workdir)
    assert pipeline.run(run, stop=lambda: False)
    data, settings = config.data.to_dict(), config.evaluate.to_dict()
    assert evaluate.write_report(workdir, data, settings, stop=lambda: False)
    for stage in run.stages:
        lines = (stage.directory / "scalars.jsonl").read_text().splitlines()
        assert np.isfinite([json.loads(line)["loss"] for line in lines]).all()
        assert (stage.directory / "grid.png").exists()
    rows = json.loads((workdir / "report.json").read_text())["rows"]
    x = load(workdir).sample(jax.random.key(0), 2)
    assert x.shape == (2, *run.dataset.shape)
    return run, rows, x


@pytest.mark.parametrize("name", RUN)
def test_a_preset_runs_to_its_report_at_smoke_size(name, tmp_path):
    _, full = load_config(name, "full")
    run, rows, x = run_smoke(name, epath.Path(tmp_path / name))
    assert run.dataset.shape == (full.data.size, full.data.size, 3)
    assert {row["num_steps"] for row in rows} >= {stage.method.num_steps for stage in run.stages}
    assert np.abs(x).max() <= 1


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_runs_to_its_report_from_an_exact_teacher(name, tmp_path):
    workdir = epath.Path(tmp_path / name)
    _, rows, x = run_smoke(name, workdir)
    assert np.isfinite(x).all()
    means = load(workdir / "s00_exact").params["means"]
    np.testing.assert_array_equal(means, ring().means.astype(np.float32))
    teacher, one_step, student = rows
    assert [row["num_steps"] for row in rows] == [256, 1, 1]
    assert teacher["sampler"] == one_step["sampler"] == "teacher"
    assert student["sampler"].startswith("student, ")
    assert list(student)[4:8] == ["SW2", "SW2 worst class", "recall", "l2"]
    assert teacher["SW2"] < one_step["SW2"]


def test_the_smoke_size_has_the_kinds_of_stages_of_the_full_size():
    for name in PRESETS + MIXTURES:
        kinds = [
            {(stage.method.name, *stage.method) for stage in config.stages.values()}
            for config in (load_config(name, size)[1] for size in ("full", "smoke"))
        ]
        assert kinds[0] == kinds[1], name
