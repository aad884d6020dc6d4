"""Tests of what a run may change when it goes on in a workdir."""

import json

import pytest
from etils import epath

from distill_jax.config import halvings, pipeline, stage
from distill_jax.run import plan
from distill_jax.run.claim import claim
from tests.toys import smoke_config

RATES = {"steps": 3, "learning_rate": 1e-3}


def chain(last=4, **changed):
    """Returns the config of a teacher and its halvings from 8 to `last` steps."""
    config = smoke_config()
    teacher = stage("teacher", "diffusion", num_steps=16, label_dropout=0.0, **RATES)
    config.stages = pipeline(teacher, *halvings(8, last, **RATES))
    for key, value in changed.items():
        config.stages[key].learning_rate = value
    return config


@pytest.fixture
def workdir(tmp_path):
    """A workdir whose first two stages have begun: the teacher and the student of 8 steps."""
    found = epath.Path(tmp_path)
    claim(found, chain(), force=False)
    for name in ("s00_teacher", "s01_n0008"):
        (found / name).mkdir()
    return found


def stages_of(workdir):
    return sorted(json.loads((workdir / "config.json").read_text())["stages"])


def test_rounds_are_added_behind_the_others(workdir, capsys):
    claim(workdir, chain(last=1), force=False)
    said = "not begun before, and of this config now: s03_n0002 to s04_n0001 (2)"
    assert said in capsys.readouterr().out
    names = ["s00_teacher", "s01_n0008", "s02_n0004", "s03_n0002", "s04_n0001"]
    assert stages_of(workdir) == names


@pytest.mark.parametrize("config", [chain(s02_n0004=5e-4), chain(last=8)])
def test_a_stage_that_has_not_begun_changes_or_goes(workdir, config):
    claim(workdir, config, force=False)
    assert stages_of(workdir) == sorted(config.stages)


def test_a_stage_that_has_begun_does_not_change(workdir):
    with pytest.raises(ValueError, match=r"s01_n0008.learning_rate: 0.001 there, 0.0005 now\nch"):
        claim(workdir, chain(s01_n0008=5e-4), force=False)
    assert stages_of(workdir) == ["s00_teacher", "s01_n0008", "s02_n0004"]


def test_no_stage_is_put_before_one_that_has_begun(workdir):
    config = chain()
    config.stages = {**config.stages.to_dict(), "s00_other": config.stages.s00_teacher.to_dict()}
    with pytest.raises(ValueError, match=r"config.stages.s00_other.base: None there,  now"):
        claim(workdir, config, force=False)


@pytest.mark.parametrize("forgotten", [("keep_states",), ("stages", "s00_teacher", "posthoc")])
def test_a_key_that_is_newer_than_the_workdir_had_its_default(workdir, forgotten):
    path = workdir / "config.json"
    old = json.loads(path.read_text())
    *above, last = forgotten
    part = old
    for key in above:
        part = part[key]
    del part[last]
    path.write_text(json.dumps(old))
    claim(workdir, chain(), force=False)
    assert json.loads(path.read_text()) == json.loads(chain().to_json())


def test_a_newer_key_with_another_value_than_its_default_is_a_change(workdir):
    path = workdir / "config.json"
    old = json.loads(path.read_text())
    del old["optimizer"]["clip_norm"], old["stages"]["s00_teacher"]["weight_decay"]
    path.write_text(json.dumps(old))
    config = chain()
    config.optimizer.clip_norm, config.stages.s00_teacher.weight_decay = 2.0, 0.1
    message = r"clip_norm: 1.0 there, 2.0 now\n.*weight_decay: 0.0 there, 0.1 now"
    with pytest.raises(ValueError, match=message):
        claim(workdir, config, force=False)


def test_chosen_stages_keep_their_order_and_their_numbers(tmp_path):
    run = plan.make(chain(), tmp_path)
    assert plan.only(run, ()) is run
    some = plan.only(run, ("n0004", "s00_teacher", "n0008")).stages
    assert [stage.name for stage in some] == ["s00_teacher", "s01_n0008", "s02_n0004"]
    assert [stage.index for stage in plan.only(run, ("teacher",)).stages] == [0]


def test_a_stage_is_not_trained_before_the_one_that_it_begins_from(tmp_path):
    run = plan.make(chain(), tmp_path)
    message = "s02_n0004 begins from s01_n0008, .*: --only=s01_n0008,s02_n0004 trains both"
    with pytest.raises(ValueError, match=message):
        plan.only(run, ("n0004",))
    with pytest.raises(KeyError, match="unknown stage 'n0040'; known: n0004, .*did you mean"):
        plan.only(run, ("n0040",))
