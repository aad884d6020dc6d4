"""Tests of config.teacher: a chain starts from a finished network, or says what does not fit."""

import ast
import dataclasses
import re

import pytest

from distill_jax.config import halvings, pipeline, stage
from distill_jax.run import plan
from distill_jax.run.starting import from_teacher
from distill_jax.sampling.loading import describe, find_parent, packaged
from tests.roads import write
from tests.run.test_plan import GUIDED, RATES, SID, TEACHER, config_of

NOISE = {"name": "noise", "size": 8, "count": 16, "num_classes": 5}
FINETUNE = stage("finetune", "diffusion", teacher="teachers/other", **RATES)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Returns the directory of an imported network of EDM for 8x8x3 and 5 classes."""
    folder = tmp_path_factory.mktemp("teachers")
    return write("edm_cifar10", folder).convert(folder / "edm_small")


def test_the_stages_of_the_trained_teacher_start_from_the_network(teacher, tmp_path):
    sid = {**SID, "teacher": "teacher"}
    config = config_of(TEACHER, SID, sid, data=NOISE, teacher=teacher)
    run = plan.make(config, tmp_path)
    assert [each.name for each in run.stages] == ["s01_sid", "s02_sid"]
    assert {str(each.teacher.directory) for each in run.stages} == {f"{teacher}/final"}
    assert run.stages[0].model["name"] == "song_unet"
    assert "edm_small" in plan.show(run), "the plan names the directory and not its final/"
    assert [*config.stages] == ["s00_teacher", "s01_sid", "s02_sid"], "the argument is as it was"


def test_a_chain_starts_from_a_network_of_the_package_by_its_name(tmp_path, monkeypatch, capsys):
    name, final = "digits_teacher", packaged()["digits_teacher"] / "final"
    config = config_of(TEACHER, SID, {**SID, "teacher": name}, teacher=name)
    run = plan.make(config, tmp_path)
    assert [each.spec.teacher for each in run.stages] == [name, name]
    assert {each.teacher.directory for each in run.stages} == {final}
    student = describe("digits")
    lineage = dataclasses.replace(student.manifest.lineage, parent=str(final))
    manifest = dataclasses.replace(student.manifest, lineage=lineage)
    (tmp_path / "shapes").mkdir()
    monkeypatch.chdir(tmp_path)  # A folder of that name says nothing about the search for a parent.
    capsys.readouterr()
    assert find_parent(dataclasses.replace(student, manifest=manifest)) == final
    assert capsys.readouterr() == ("", "")


def test_what_the_network_sets_is_shown_as_lines_that_can_be_pasted(teacher, tmp_path):
    run = plan.make(config_of(TEACHER, SID, data=NOISE, teacher=teacher), tmp_path)
    text = plan.show(run)
    assert f"from {teacher}: 5 classes of label, trained without label dropout" in text
    lines = dict(re.findall(r"^  config\.(\w+) = (.+)$", text, re.MULTILINE))
    values = {key: ast.literal_eval(line) for key, line in lines.items()}
    pasted = config_of({**SID, "teacher": teacher}, data=NOISE, **values)
    other = plan.make(pasted, tmp_path)
    assert other.stages[0].roles.student is run.stages[0].roles.student


def test_a_chain_from_another_directory_and_its_fine_tuning_start_from_the_network(teacher):
    config = config_of(FINETUNE, GUIDED, teacher=teacher, parameterization="v")
    found = from_teacher(config)
    assert [entry.teacher for entry in found.stages.values()] == [teacher, ""]
    assert found.parameterization == "v", "a stage that fine-tunes may change it"
    sid = {**SID, "teacher": "teachers/other"}
    found = from_teacher(config_of(sid, {**sid, "init": "sid"}, teacher=teacher))
    assert [entry.teacher for entry in found.stages.values()] == [teacher, teacher]
    assert found.parameterization == "edm"
    assert from_teacher(found) == found


def test_options_of_the_computation_stay_and_labels_follow_the_network(teacher):
    model = {"name": "unet", "dtype": "bfloat16", "remat": "full", "logsnr_input": "inv_cos"}
    data = {"name": "folder", "path": "pictures", "size": 8, "labelled": False}
    found = from_teacher(config_of(TEACHER, SID, model=model, data=data, teacher=teacher))
    assert (found.model.name, found.model.dtype, found.model.remat) == (
        "song_unet",
        "bfloat16",
        "full",
    )
    assert "logsnr_input" not in found.model
    assert found.data.labelled
    learns = {**FINETUNE, "new": ("label_embed",)}
    assert not from_teacher(config_of(learns, data=data, teacher=teacher)).data.labelled


def test_all_misfits_are_one_message_with_the_data_first(teacher, tmp_path):
    encoder = stage("encoder", "encoder", num_steps=8, teacher="teacher", **RATES)
    halves = halvings(2, teacher="guided", w_range=(0.0, 4.0), **RATES)
    config = config_of(TEACHER, GUIDED, *halves, encoder, teacher=teacher, parameterization="x")
    with pytest.raises(ValueError, match="config.teacher") as caught:
        plan.make(config, tmp_path)
    text = str(caught.value)
    parts = (
        f"the network of config.teacher, {teacher}, does not fit this config in 3 places: "
        "it works on 8x8x3, and the data are 8x8x1: take other images; "
        "the data has 10 classes of label, the teacher 5 classes of label; ",
        "s01_guided: the teacher was trained with label_dropout=0, so it has no null condition",
    )
    assert text.startswith(parts[0])
    assert parts[1] in text
    assert len(text) < 1500


def test_latents_pixels_and_a_schedule_are_misfits_too(teacher, tmp_path):
    codec = {"name": "patch_pca", "patch": 2}
    config = config_of(TEACHER, SID, codec=codec, teacher=teacher)
    with pytest.raises(ValueError, match="works on pixels 8x8x3, .* latents .*leave config.codec"):
        plan.make(config, tmp_path)
    loud = stage("sid", "sid_lsg", sigma_init=200.0, **RATES)
    with pytest.raises(ValueError, match="s01_sid: sigma_init is 200.0; .* schedule, up to 80"):
        plan.make(config_of(TEACHER, loud, data=NOISE, teacher=teacher), tmp_path)


def test_a_teacher_that_would_be_trained_for_nothing_is_refused(teacher, tmp_path):
    config = config_of(TEACHER, {**SID, "teacher": teacher}, data=NOISE)
    with pytest.raises(ValueError, match=f"s00_teacher .* Give --config.teacher={teacher} in its"):
        plan.make(config, tmp_path)
    with pytest.raises(ValueError, match="s00_teacher is the only stage, .* nothing is left to do"):
        plan.make(config_of(TEACHER, teacher=teacher), tmp_path)
    with pytest.raises(FileNotFoundError, match="has no finished network"):
        plan.make(config_of(TEACHER, SID, teacher=f"{tmp_path}/nothing"), tmp_path)


def test_a_second_teacher_may_be_used_beside_the_first(teacher):
    stages = pipeline(TEACHER, {**SID, "teacher": teacher}, {**SID, "teacher": "teacher"})
    config = config_of(TEACHER)
    config.stages = stages
    assert from_teacher(config) is config
