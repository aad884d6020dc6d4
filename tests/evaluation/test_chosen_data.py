"""Tests of the data that a command reads: none outside the package without the user's flag."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import sys
from types import SimpleNamespace

import PIL.Image
import pytest
from ml_collections import ConfigDict

from distill_jax.data import DATASETS, EMBEDDED
from distill_jax.evaluation import chosen_data
from distill_jax.evaluation.chosen_data import named
from distill_jax.sampling.loading import describe
from tests.test_commands import one_message, run

OUTSIDE = {"name": "tfds", "dataset": "cifar10", "size": 8, "data_dir": "gs://somebody/data"}


@pytest.fixture
def choose(chain):
    """Returns the data that a command chooses for a student's manifest and the flags."""
    student = describe(chain)

    def choose(named, config=None, data=None, allow=()):
        manifest = dataclasses.replace(student.manifest, data=named)
        values = SimpleNamespace(config=config, data=data, allow=allow)
        return chosen_data.choose(dataclasses.replace(student, manifest=manifest), values)

    return choose


def test_data_of_the_package_are_used_without_a_flag(choose):
    assert choose({"name": "digits"}) == {"name": "digits"}
    assert {"folder", "tfds"}.isdisjoint(EMBEDDED)


@pytest.fixture
def pictures(tmp_path):
    """Returns options of a folder of 20 pictures (8, 8, 3) in 10 classes."""
    for label in range(10):
        (tmp_path / f"class {label}").mkdir()
        for i in range(2):
            picture = PIL.Image.new("L", (8, 8), 20 * label + i)
            picture.save(tmp_path / f"class {label}" / f"{i}.png")
    return {"name": "folder", "path": str(tmp_path), "size": 8}


def test_other_data_are_used_once_the_user_names_what_the_manifest_names(choose, pictures):
    with pytest.raises(ValueError, match="not in the package") as caught:
        choose(pictures)
    for wrong in ("", "manifest", "/", pictures["path"] + "/"):
        with pytest.raises(ValueError, match=f"--data={wrong} is not what .* names"):
            choose(pictures, data=wrong)
    (flag,) = re.findall("--data=(.*), or name others", str(caught.value))
    with pytest.raises(
        ValueError, match=r"data are of shape \(8, 8, 3\), the network's \(8, 8, 1\)"
    ):
        choose(pictures, data=shlex.split(flag)[0])


def test_the_flag_is_everything_that_a_manifest_names():
    assert named(OUTSIDE) == "gs://somebody/data,cifar10"
    assert named({"name": "tfds", "dataset": "cifar10", "size": 8}) == "cifar10"
    assert named({"name": "a.b:C", "size": 8, "more": ["x"], "path": "/d"}) == '["x"],a.b:C,/d'


def test_the_message_prints_what_the_manifest_names(choose):
    with pytest.raises(ValueError, match=r'/s07_n0001/final/manifest.json .*"gs://somebody/data"'):
        choose(OUTSIDE)
    assert choose(OUTSIDE, config=ConfigDict({"data": {"name": "digits"}})) == {"name": "digits"}


def test_data_of_another_number_of_classes_are_refused(choose):
    noise = {"name": "noise", "size": 8, "channels": 1, "num_classes": 3, "count": 9}
    with pytest.raises(ValueError, match="the data have 3 classes; the network was trained on 10"):
        choose(OUTSIDE, config=ConfigDict({"data": noise}))


def test_data_that_changed_since_the_training_are_said(choose, chain, capsys):
    assert choose({"name": "digits"})
    assert capsys.readouterr().out == ""
    student = describe(chain)
    lineage = dataclasses.replace(student.manifest.lineage, data={"fingerprint": "before"})
    manifest = dataclasses.replace(student.manifest, lineage=lineage)
    values = SimpleNamespace(config=None, data=None, allow=())
    chosen_data.choose(dataclasses.replace(student, manifest=manifest), values)
    now = DATASETS["digits"]().summary.fingerprint
    assert f"fingerprint is {now}, and was before" in capsys.readouterr().out


def test_data_of_another_shape_are_refused(choose):
    with pytest.raises(ValueError, match=r"of shape \(1, 1, 2\), the network's \(8, 8, 1\)"):
        choose(OUTSIDE, config=ConfigDict({"data": {"name": "mixture", "count": 8}}))


@pytest.mark.parametrize("data", [{}, None, {"name": None}])
def test_a_manifest_that_names_no_data_asks_for_a_config(choose, data):
    with pytest.raises(ValueError, match="name a config with its data, such as --config="):
        choose(data, data="")


FORGED = {"pythonClassName": "forged_feature.X", "text": {}}


@pytest.fixture
def forged(chain, tmp_path):
    """Returns a student whose manifest names a TFDS folder that names a module beside it."""
    shutil.copytree(chain / "s07_n0001" / "final", tmp_path / "student" / "final")
    path = tmp_path / "student" / "final" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["checksum"]
    manifest["data"] = OUTSIDE | {"data_dir": str(tmp_path / "data")}
    path.write_text(json.dumps(manifest))
    folder = tmp_path / "data" / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text(json.dumps(FORGED))
    (folder / "dataset_info.json").write_text('{"name": "cifar10", "version": "3.0.2"}')
    text = "import pathlib\npathlib.Path(__file__).with_name('executed').touch()\n"
    (tmp_path / "forged_feature.py").write_text(text)
    return tmp_path


@pytest.mark.parametrize("command", [("evaluate",), ("edit", "sdedit", "--w=1")])
def test_a_forged_student_runs_nothing_and_ends_with_one_message(forged, command):
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join([str(forged), *sys.path])}
    done = run(*command, f"--student={forged / 'student'}", env=variables)
    assert "names data that are not in the package" in one_message(*done)
    assert not (forged / "executed").exists()
