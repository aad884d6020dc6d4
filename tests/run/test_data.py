"""The data of a run: the plan says what they are, and a changed dataset is noticed."""

import json
import os

import pytest

from distill_jax.config import base, pipeline, stage
from distill_jax.data import DATASETS
from distill_jax.run import data, plan
from distill_jax.run.claim import claim
from tests.data.pictures import picture, png, write_folder


def config_of(path):
    config = base()
    config.data = {"name": "folder", "path": str(path), "size": 4}
    config.model = {"name": "mlp", "width": 8, "blocks": 1}
    config.batch_size = 8
    config.stages = pipeline(stage("teacher", "diffusion", steps=2, learning_rate=1e-3))
    return config


def planned(path, workdir):
    return plan.make(config_of(path), workdir)


def test_the_plan_says_what_the_data_are(tmp_path):
    write_folder(tmp_path / "data")
    (tmp_path / "data" / "cat" / "\x1b[2Jx.tif").write_text("")
    lines = plan.show(planned(tmp_path / "data", tmp_path / "run")).splitlines()
    assert lines[-3] == (
        "data: folder, 27 train + 3 test images; 3 classes: cat, dog, emu; split by name; upright "
        "by EXIF"
    )
    assert lines[-2] == "  passed over: 1 .tif files (cat/?[2Jx.tif)"


def test_every_dataset_of_the_package_is_described():
    shown = data.show("digits", DATASETS["digits"]())
    assert shown == ["data: digits, 1,437 train + 360 test images; 10 classes: 0 to 9"]
    shown = data.show("noise", DATASETS["noise"](num_classes=0))
    assert shown == ["data: noise, 256 train + 256 test images; no classes"]
    missing = DATASETS["tfds"]("cifar10", 32, "/nowhere", num_labels=10)
    assert data.show("tfds", missing)[0].startswith(
        "data: tfds, 10 classes: 0 to 9; not read here: dataset 'cifar10' is not prepared in /now"
    )
    assert data.record(missing) == {}


def test_many_classes_are_shortened(tmp_path):
    names = [f"class {c:02d}" for c in range(20)]
    write_folder(tmp_path, 60, names)
    shown = data.show("folder", DATASETS["folder"](str(tmp_path), 4))[0]
    assert (
        "20 classes: class 00, class 01, class 02, class 03, class 04, class 05, class 06, "
        in shown
    )
    assert "..., class 19; " in shown


def test_a_changed_dataset_is_refused_unless_forced(tmp_path):
    root, workdir = write_folder(tmp_path / "data"), tmp_path / "run"
    run = planned(root, workdir)
    claim(run.workdir, run.config, False, data.record(run.dataset))
    claim(run.workdir, run.config, False, data.record(planned(root, workdir).dataset))
    (root / "cat" / "new.png").write_bytes(png(picture(99)))
    changed = data.record(planned(root, workdir).dataset)
    message = r"holds a run of other data:\n  data.counts.train: 27 there, 28 now\n  data.fingerp"
    with pytest.raises(ValueError, match=message):
        claim(run.workdir, run.config, False, changed)
    assert data.read_record(run.workdir) != changed
    claim(run.workdir, run.config, True, changed)
    assert data.read_record(run.workdir) == changed


def test_a_run_whose_record_has_no_captions_yet_goes_on(tmp_path):
    run = planned(write_folder(tmp_path / "data"), tmp_path / "run")
    old = data.record(run.dataset)
    claim(run.workdir, run.config, False, old)
    new = {**old, "captions": {"all": 3, "different": 2}}
    claim(run.workdir, run.config, False, new)
    assert data.read_record(run.workdir) == new
    with pytest.raises(ValueError, match="data.captions.all: 3 there, 4 now"):
        claim(run.workdir, run.config, False, {**new, "captions": {"all": 4, "different": 2}})


def test_a_run_without_a_record_of_its_data_goes_on(tmp_path):
    root, workdir = write_folder(tmp_path / "data"), tmp_path / "run"
    run = planned(root, workdir)
    claim(run.workdir, run.config, False)
    assert data.read_record(run.workdir) == {}
    claim(run.workdir, run.config, False, data.record(run.dataset))
    (run.workdir / "data.json").write_text("{")
    assert data.read_record(run.workdir) == {}
    assert (run.workdir / "data.json.damaged").read_text() == "{"


def test_unreadable_images_are_one_message_before_the_training(tmp_path):
    root = write_folder(tmp_path)
    for name in ("cat/003.png", "dog/004.png", "emu/005.png", "cat/006.png"):
        (root / name).write_bytes((root / name).read_bytes()[:200])
    dataset = planned(root, tmp_path / "run").dataset
    message = r"^4 of 30 .*/cat/003.png .*/cat/006.png .*; and others; .* skip_unreadable=True$"
    with pytest.raises(ValueError, match=message):
        data.check_images(dataset, {})


def test_images_are_opened_once_in_a_run(tmp_path, monkeypatch):
    dataset = planned(write_folder(tmp_path), tmp_path / "run").dataset
    data.check_images(dataset, {})
    monkeypatch.setattr(data, "check", pytest.fail)
    data.check_images(dataset, data.record(dataset))


def test_paths_of_data_are_absolute_and_the_old_record_of_a_relative_one_fits(
    tmp_path, monkeypatch
):
    write_folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    run = planned("data", tmp_path / "run")
    assert run.config.data.path == str(tmp_path / "data")
    run.workdir.mkdir()
    old = json.loads(config_of("data").to_json())
    (run.workdir / "config.json").write_text(json.dumps(old))
    claim(run.workdir, run.config, False)
    assert (
        json.loads((run.workdir / "config.json").read_text())["data"]["path"]
        == run.config.data.path
    )


def test_only_paths_of_the_package_are_made_absolute():
    mine = {"name": "my.module:Name", "path": "a/b"}
    assert data.absolute_paths(mine) == {}
    options = {"name": "tfds", "data_dir": "~/d", "dataset": "a/b"}
    assert data.absolute_paths(options) == {"data_dir": os.path.expanduser("~/d")}
    assert data.absolute_paths({"name": "tfds", "data_dir": ""}) == {}
    bucket = {"data_dir": "gs://bucket/d"}
    assert data.absolute_paths({"name": "tfds", **bucket}) == bucket
