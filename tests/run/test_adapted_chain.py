"""Tests of stages that train adapters on one copy of the frozen weights, on disk and in memory."""

import json
import shutil

import jax
import numpy as np
import pytest

from distill_jax.config import pipeline as in_order
from distill_jax.config import stage
from distill_jax.evaluation import compare
from distill_jax.models.adapters import Adapted
from distill_jax.run import costs, pipeline, plan
from distill_jax.run.begin import Weights
from distill_jax.runtime.sharding import make_layout
from distill_jax.runtime.trees import by_name
from distill_jax.sampling.loading import load, load_own
from distill_jax.training.roles import Role
from tests.toys import smoke_config

RATES = {"steps": 2, "learning_rate": 1e-2}
W = {"w_range": (0.0, 4.0), "lora": 2}


def adapted_config(teacher):
    """Returns a config of adapted stages (guided, SiD, two halvings) and a halving in full."""
    config = smoke_config()
    config.stages = in_order(
        stage(
            "guided", "guided", teacher=teacher, new=("w_embed",), clip_target=False, **W, **RATES
        ),
        stage("n0002", "progressive", num_steps=2, **W, **RATES),
        stage("n0001", "progressive", num_steps=1, **W, **RATES),
        stage("sid", "sid_lsg", teacher="guided", init="n0001", **W, **RATES),
        stage("whole", "progressive", teacher="n0002", num_steps=1, w_range=(0.0, 4.0), **RATES),
    )
    config.stages.s00_guided.method.num_steps = 4
    return config


@pytest.fixture(scope="module")
def run(chain, tmp_path_factory):
    run = plan.make(adapted_config(str(chain / "s00_teacher")), tmp_path_factory.mktemp("adapted"))
    assert pipeline.run(run, stop=lambda: False)
    return run


def test_all_stages_have_adapters_of_the_same_frozen_weights(run, chain):
    assert [stage.roles.trained for stage in run.stages] == [
        Role("teacher", 2),
        Role("base", 2),
        Role("base", 2),
        Role("base", 2),
        Role(),
    ]
    assert [stage.roles.frozen for stage in run.stages] == [
        Role(),
        *[Role("base", 2)] * 3,
        Role(),
    ]
    base = chain / "s00_teacher" / "final"
    for each in run.stages[:-1]:
        assert each.start.weights.directory == base
        reference = json.loads((each.directory / "final" / "manifest.json").read_text())["adapters"]
        assert (reference["base"]["path"], reference["rank"]) == (str(base), 2)
        assert reference["full"] == ["w_embed"]


def test_frozen_bytes_are_one_copy(run):
    """Frozen bytes are the weights once, and the adapters of a teacher within the chain."""
    network = sum(leaf.nbytes for leaf in jax.tree.leaves(load(run.parts[0]).params))
    for each, cost in zip(run.stages, costs.measure(run).values(), strict=True):
        adapters = sum(leaf.size * 4 for leaf in jax.tree.leaves(each.shapes["student"]))
        more = adapters if each.roles.frozen.base else 0
        if each.name == "s04_whole":  # Its weights are merged, and include the modules of stage 1.
            more = cost.kept["EMA"] - network
        assert cost.kept["frozen"] == network + more, each.name
        if each.roles.trained.base:
            assert cost.kept["EMA"] == adapters < network / 3


def test_a_chain_goes_on_from_the_adapters_of_its_teacher(run):
    """Two updates at a learning rate of 1e-2 change every number by at most about 2e-2."""
    first, second = (by_name(load_own(stage.directory, run.layout)) for stage in run.stages[:2])
    assert first.keys() == second.keys()
    assert any("w_embed" in name for name in first)
    moved = max(np.abs(first[name] - second[name]).max() for name in first)
    assert 1e-4 < moved < 2.1e-2
    random = max(np.abs(leaf).max() for name, leaf in first.items() if name.endswith("lora_a"))
    assert random > 0.2


def test_a_stage_in_full_begins_with_the_merged_weights_of_adapters(run):
    whole, teacher = run.stages[-1], load(run.stages[1].directory, parts=run.parts)
    merged, begun = (
        by_name(tree)
        for tree in (teacher.merged.params, Weights(run.layout, "float32").whole(whole.teacher))
    )
    mine = by_name(load(whole.directory).params)
    assert mine.keys() == merged.keys() == begun.keys()
    for name, leaf in merged.items():
        np.testing.assert_array_equal(begun[name], leaf)
        assert np.abs(mine[name] - leaf).max() < 2.1e-2


def test_an_adapted_student_samples_as_its_merged_weights_do(run):
    student = load(run.stages[2].directory, parts=run.parts)
    assert isinstance(student.params, Adapted)
    x, y = (each.sample(jax.random.key(0), 8, w=1.0) for each in (student, student.merged))
    np.testing.assert_allclose(x, y, atol=1e-5)
    base = load(run.parts[0]).sample(jax.random.key(0), 8, num_steps=1)
    assert np.abs(x - base).max() > 1e-2


def test_weights_outside_the_workdir_are_not_loaded_without_parts(run):
    with pytest.raises(ValueError, match=r"needs .*s00_teacher/final, .*nowhere.*--base=DIR"):
        load(run.stages[0].directory)
    other = run.stages[-1].directory
    with pytest.raises(ValueError, match=r"looked at: .*s04_whole.*Name the directory"):
        load(run.stages[0].directory, parts=[other])
    assert load(run.stages[0].directory, parts=[other, *run.parts]).params


def test_a_run_may_be_moved_with_its_base(chain, tmp_path):
    config = adapted_config("teacher")
    config.stages = in_order(
        stage("teacher", "diffusion", label_dropout=0.1, num_steps=4, **RATES),
        stage("guided", "guided", new=("w_embed",), num_steps=4, **W, **RATES),
    )
    old, new = tmp_path / "old", tmp_path / "new"
    run = plan.make(config, old)
    assert run.stages[1].roles.trained == Role("teacher", 2)
    pipeline.run(run, stop=lambda: False)
    before = load(old, parts=[]).sample(jax.random.key(0), 2, w=1.0)
    shutil.move(old, new)
    np.testing.assert_array_equal(load(new).sample(jax.random.key(0), 2, w=1.0), before)
    manifest = new / "s01_guided" / "final" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["adapters"]["base"]["path"] = "../../../elsewhere/final"
    del content["checksum"]
    manifest.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="nowhere"):
        load(new)


def test_the_report_of_an_adapted_run_is_written(run):
    settings = {"w": (1.0,), "num_samples": 100, "ancestral": ()}
    assert compare.write_report(
        run.workdir,
        {"name": "digits"},
        settings,
        lambda: False,
        make_layout({"data": -1}),
        run.parts,
    )
    assert (run.workdir / "report.md").exists()


def test_another_rank_than_that_of_the_first_adapters_is_refused(run, chain, tmp_path):
    config = adapted_config(str(chain / "s00_teacher"))
    config.stages.s02_n0001.lora = 3
    with pytest.raises(ValueError, match=r"lora is 3, .*adapters of rank 2, .*take 2, or 0"):
        plan.make(config, tmp_path)


def test_a_stage_names_the_base_of_a_teacher_from_elsewhere(run, chain, tmp_path):
    config = adapted_config(str(chain / "s00_teacher"))
    config.stages.s02_n0001.teacher = str(run.stages[1].directory)
    with pytest.raises(ValueError, match=r"stage s02_n0001: .*--base=DIR"):
        plan.make(config, tmp_path)
    config.stages.s02_n0001.base = str(chain / "s00_teacher")
    assert plan.make(config, tmp_path).stages[2].roles.trained == Role("base", 2)
