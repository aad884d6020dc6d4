"""Tests of one-call students beyond their presets: other teachers, other starts, adapters."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from etils import epath

from distill_jax.config import pipeline as in_order
from distill_jax.config import stage
from distill_jax.diffusion.trained import Guidance
from distill_jax.evaluation.compare import entries
from distill_jax.run import pipeline, plan
from distill_jax.runtime import logging
from distill_jax.sampling.loading import load
from distill_jax.training.loop import StoppedError
from tests.toys import smoke_config

RATES = {"steps": 2, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def students(chain, tmp_path_factory):
    """Returns a run of BOOT from a halving, SiD between students that take w, and adapted DMD2."""
    config = smoke_config()
    options = {"absorbed": True, "w_range": (0.0, 4.0), "teacher_steps": 4, "solver": "euler"}
    options["clip_target"] = True  # The teacher was trained with it.
    config.stages = in_order(
        stage(
            "guided",
            "guided",
            teacher=str(chain / "s00_teacher"),
            w_range=(0.0, 4.0),
            new=("w_embed",),
            clip_target=False,
            **RATES,
        ),
        stage(
            "boot",
            "boot",
            teacher=str(chain / "s05_n0004"),
            new=("target_embed",),
            **options,
            **RATES,
        ),
        stage(
            "sid",
            "sid_lsg",
            teacher="guided",
            init=str(chain / "s07_n0001"),
            w_range=(0.0, 2.0),
            **RATES,
        ),
        stage(
            "dmd2",
            "dmd2",
            teacher=str(chain / "s00_teacher"),
            lora=2,
            gan_weight=0.01,
            fake_updates=2,
            **RATES,
        ),
    )
    run = plan.make(config, tmp_path_factory.mktemp("one_call"))
    assert pipeline.run(run, stop=lambda: False)
    return run


@pytest.mark.parametrize("index", range(1, 4))
def test_a_student_may_start_from_any_finished_stage(students, index):
    stage = students.stages[index]
    student = load(stage.directory, parts=students.parts)
    w = 1.5 if student.takes_w else None
    x = student.sample(jax.random.key(0), 4, w=w)
    assert x.shape == (4, 8, 8, 1)
    assert np.abs(x).max() <= 1
    assert student.calls(w) == 1
    lines = (stage.directory / "scalars.jsonl").read_text().splitlines()
    values = [value for line in lines for value in json.loads(line).values()]
    assert np.isfinite(values).all()
    assert json.loads(lines[-1])["cpu_seconds"] > 0


def test_a_student_may_start_from_another_network_than_its_teacher(students):
    """After two updates at a learning rate of 1e-3, the student is nearer to its start."""
    stage = students.stages[2]
    mine, *others = (
        jax.tree.leaves(load(path).params)
        for path in (stage.directory, stage.start.directory, stage.teacher.directory)
    )
    start, teacher = (
        sum(np.abs(a - b).sum() for a, b in zip(mine, other, strict=True)) for other in others
    )
    assert 0 < start < teacher
    manifest = load(stage.directory).manifest
    assert manifest.lineage.init.endswith("s07_n0001/final")
    assert manifest.lineage.parent.endswith("s00_guided/final")


def test_adapters_are_few_numbers_that_change_few_weights(students):
    stage = students.stages[3]
    network = jax.tree.leaves(stage.shapes["teacher"])
    adapters = jax.tree.leaves(stage.shapes["student"])
    assert sum(leaf.size for leaf in adapters) < sum(leaf.size for leaf in network) / 4
    assert set(stage.shapes["fake"]) == {"network", "discriminator"}
    merged = load(stage.directory, parts=students.parts).merged.params
    teacher = load(stage.teacher.directory).params
    changed = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(merged), jax.tree.leaves(teacher), strict=True
        )
        if not np.array_equal(a, b)
    }
    assert changed
    assert all(name.endswith(("kernel", "embedding")) for name in changed)


def test_a_stopped_run_of_two_roles_goes_on_bit_for_bit(students, tmp_path):
    """The state has the fake network, its discriminator and both optimizers."""
    config = students.config.copy_and_resolve_references()
    config.stages = {"s00_dmd2": config.stages.s03_dmd2}
    whole, stopped = (plan.make(config, tmp_path / name) for name in ("whole", "stopped"))
    assert pipeline.run(whole, stop=lambda: False)
    with pytest.raises(StoppedError, match="stopped after iteration 1"):
        pipeline.run(stopped, stop=lambda: True)
    assert pipeline.run(stopped, stop=lambda: False)
    a, b = (jax.tree.leaves(load(run.workdir, parts=run.parts).params) for run in (whole, stopped))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def under(student, guidance):
    """Returns the student with the manifest of another guidance."""
    trained = student.trained._replace(guidance=guidance)
    return dataclasses.replace(
        student, manifest=dataclasses.replace(student.manifest, trained=trained)
    )


def test_a_report_compares_a_student_at_the_strength_in_its_weights(students, chain):
    student, teacher = (
        load(students.stages[3].directory, parts=students.parts),
        load(chain / "s00_teacher"),
    )
    longer = under(student, Guidance(fixed_w=2.0))
    taking = load(students.stages[2].directory)
    rows = entries(teacher, [student, longer, taking], strengths=(0.0, 1.0, 4.0))
    found = [(entry.sampler, entry.w, entry.num_steps) for entry in rows]
    per_teacher = [("teacher", 64), ("teacher", 1)]
    assert found == [
        *((sampler, 0.0, n) for sampler, n in per_teacher),
        ("student, dmd2", 0.0, 1),
        ("student, sid_lsg", 0.0, 1),  # This student takes w in [0, 2].
        *((sampler, 1.0, n) for sampler, n in per_teacher),
        ("student, sid_lsg", 1.0, 1),
        *((sampler, 2.0, n) for sampler, n in per_teacher),
        ("student, dmd2", 2.0, 1),
        ("student, sid_lsg", 2.0, 1),
        *((sampler, 4.0, n) for sampler, n in per_teacher),
    ]
    assert [entry.w for entry in entries(teacher, [student], strengths=(0.0, 4.0))] == [None] * 3
    short = under(student, Guidance(fixed_w=-0.5))
    found = [(entry.sampler, entry.w) for entry in entries(teacher, [short], strengths=())]
    assert found == [("student, dmd2", -0.5)]  # A teacher cannot be guided by w < 0.


def test_a_report_has_a_row_of_every_network(students, chain):
    teacher, taking = load(chain / "s00_teacher"), load(students.stages[2].directory)
    alone = under(teacher, Guidance(null=False))
    assert [(e.sampler, e.w) for e in entries(alone, [], strengths=(0.0, 1.0))] == [
        ("teacher", None)
    ]
    narrow = under(taking, Guidance(w_range=(0.25, 0.75)))
    rows = entries(teacher, [narrow], strengths=(0.0, 1.0))
    assert [e.w for e in rows if e.network is narrow] == [0.25]


def test_a_student_with_a_sampler_of_its_own_takes_no_variance(students):
    student = load(students.stages[3].directory, parts=students.parts)
    with pytest.raises(ValueError, match="dmd2 students have a sampler of their own"):
        student.sample(jax.random.key(0), 2, variance=0.5)


def test_the_log_of_a_score_matching_stage_shows_the_gap_and_its_trend(tmp_path, capsys):
    log = logging.StageLog(epath.Path(tmp_path), "sid", 10, 0)
    for step, gap in enumerate([0.4] * 5 + [0.3] * 5, start=1):
        log.log(step, [{"loss": -0.1, "score_gap": gap}])
    log.close()
    assert "10/10, score gap 0.3000 (-25% over the last lines)" in capsys.readouterr().out
