"""Configs at their smoke size, from nothing to the report."""

import functools
import json

import jax
import numpy as np
import pytest
from etils import epath

from distill_jax.diffusion.analytic import ring
from distill_jax.evaluation import compare
from distill_jax.run import pipeline, plan
from distill_jax.sampling.loading import load, load_own
from tests.test_configs import CONFIGS, load_config

# The digits chain is tried by the tests of the chain. Of configs that differ in numbers alone one
# is run: cifar10_sid_lsg for cifar10_sid, and two mixtures for the third. imagenet64_dmd2 has a
# test of its own.
PRESETS = [name for name in CONFIGS if not name.startswith(("digits", "mixture"))]
RUN = [name for name in PRESETS if name not in ("cifar10_sid", "imagenet64_dmd2")]
MIXTURES = ["mixture_boot", "mixture_dmd2"]


def run_smoke(name, workdir, **changes):
    """Runs a config to its report; returns the plan, the report's rows and two samples."""
    _, config = load_config(name, "smoke")
    config.update_from_flattened_dict(changes)
    run = plan.make(config, workdir)
    assert pipeline.run(run, stop=lambda: False)
    data, settings = config.data.to_dict(), config.evaluate.to_dict()
    assert compare.write_report(workdir, data, settings, stop=lambda: False)
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
    check_preset(name, epath.Path(tmp_path / name))


def check_preset(name, workdir, **changes):
    _, full = load_config(name, "full")
    run, rows, x = run_smoke(name, workdir, **changes)
    assert run.dataset.shape == (full.data.size, full.data.size, 3)
    assert {row["num_steps"] for row in rows} >= {stage.method.num_steps for stage in run.stages}
    assert np.abs(x).max() <= 1
    return run


def test_the_second_stage_of_dmd2_starts_from_both_networks_that_the_first_left(tmp_path):
    workdir = epath.Path(tmp_path / "dmd2")
    last = "stages.s02_gan."
    run = check_preset(
        "imagenet64_dmd2", workdir, **{last + "learning_rate": 0.0, last + "keep_fake": True}
    )
    _, first, second = run.stages
    begun = second.start.directory, second.fake_start.directory
    assert begun == (first.directory, first.directory)
    assert second.roles.critic == "spatial"
    # A rate of 0 changes nothing, so what the second stage ends with is what it began with.
    students, fakes = (
        [read(stage.directory, run.layout) for stage in (first, second)]
        for read in (load_own, functools.partial(load_own, name="fake"))
    )
    for left, begun in (students, fakes):
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(begun), strict=True):
            np.testing.assert_array_equal(a, b)
    different = [
        not np.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(students[0]), jax.tree.leaves(fakes[0]), strict=True)
    ]
    assert all(different), "the fake is no copy of the student"
    manifest = load(second.directory).manifest
    assert manifest.lineage.init == manifest.lineage.init_fake == "../../s01_dmd2/final"
    path = first.directory / "final" / "manifest.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in kept.items() if k not in ("fake", "checksum")}))
    with pytest.raises(ValueError, match="'dmd2', and the final/ there has no fake network; .*=T"):
        plan.make(run.config, workdir)


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
    assert list(student)[5:9] == ["SW2", "SW2 worst class", "recall", "l2"]
    assert teacher["SW2"] < one_step["SW2"]


def test_the_smoke_size_has_the_kinds_of_stages_of_the_full_size():
    for name in PRESETS + MIXTURES:
        kinds = [
            {(stage.method.name, *stage.method) for stage in config.stages.values()}
            for config in (load_config(name, size)[1] for size in ("full", "smoke"))
        ]
        assert kinds[0] == kinds[1], name
