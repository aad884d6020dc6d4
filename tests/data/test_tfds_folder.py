"""A prepared dataset is only data: no class that its files name is imported."""

import json
import os
import shutil
import sys

import pytest
from tensorflow_datasets.core import read_only_builder

from distill_jax.data import tfds
from distill_jax.data.tfds import Tfds
from distill_jax.data.tfds_folder import MAX_BYTES
from tests.data.pictures import CIFAR10, Lossy, Numbered, write_tfds

EVIL = "evil_feature.X"
TEXT = "tensorflow_datasets.core.features.text_feature.Text"
DICT = "tensorflow_datasets.core.features.features_dict.FeaturesDict"
SEQUENCE = "tensorflow_datasets.core.features.sequence_feature.Sequence"


@pytest.fixture
def folder(prepared, tmp_path, monkeypatch):
    """A dataset's version folder, beside a module that records its import."""
    root = tmp_path / "data"
    shutil.copytree(prepared, root)
    text = "import pathlib\npathlib.Path(__file__).with_name('executed').touch()\n"
    (tmp_path / "evil_feature.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield root / "pictures" / "1.0.0"
    sys.modules.pop("evil_feature", None)


def legacy(features):
    """Writes features in the format that TFDS had before its protocol buffer."""
    return {"type": DICT, "content": features, "proto_cls": ""}


def text(name, spelling="pythonClassName"):
    return {spelling: name, "text": {}}


DESCRIPTIONS = {
    "at the top": {**text(EVIL)},
    "within": {"pythonClassName": DICT, "featuresDict": {"features": {"a": text(EVIL)}}},
    "within a sequence": {"pythonClassName": SEQUENCE, "sequence": {"feature": text(EVIL)}},
    "in the other spelling": text(EVIL, "python_class_name"),
    "of an old version": legacy({"a": {"type": EVIL, "content": {}}}),
    "of a feature called type": legacy({"type": {"type": EVIL, "content": {}}}),
    "in JSON within a string": {
        "pythonClassName": DICT,
        "jsonFeature": {"json": json.dumps({"a": {"type": EVIL, "content": {}}})},
    },
    "in a protocol buffer within a string": {
        "type": DICT,
        "proto_cls": "tensorflow_datasets.FeaturesDict",
        "content": json.dumps({"features": {"a": text(EVIL)}}),
    },
}


def read(folder):
    return Tfds("pictures", 4, str(folder.parents[1])).images("train", 1)


@pytest.mark.parametrize("kind", DESCRIPTIONS)
@pytest.mark.parametrize("file", ["features.json", "dataset_info.json"])
def test_a_class_that_a_file_names_is_never_imported(folder, file, kind):
    content = json.loads((folder / file).read_text())
    described = DESCRIPTIONS[kind]
    if file == "dataset_info.json":
        (folder / file).write_text(json.dumps(content | {"features": described}))
        assert len(read(folder).label) == 1
    else:
        (folder / file).write_text(json.dumps(described))
        with pytest.raises(ValueError, match=r"^dataset 'pictures'"):
            read(folder)
    executed = folder.parents[2] / "executed"
    assert not executed.exists()
    # What TFDS does by itself, without which this test would show nothing.
    if file == "features.json" or "type" not in described:
        with pytest.raises(Exception, match="Unrecognized FeatureConnector type"):
            read_only_builder.builder_from_directory(folder)
        assert executed.exists()


def test_a_feature_of_another_class_is_ignored(folder):
    features = json.loads((folder / "features.json").read_text())
    features["featuresDict"]["features"]["more"] = text(EVIL)
    (folder / "features.json").write_text(json.dumps(features))
    assert len(read(folder).label) == 1
    assert not (folder.parents[2] / "executed").exists()


DAMAGED = {
    "no JSON": (b"{", "is no readable JSON"),
    "no object": (b"[]", "holds a list"),
    "nested too deeply": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too many levels"),
    "too long": (b" " * (MAX_BYTES + 1), "has more than 4,194,304 bytes"),
    "missing fields": (json.dumps({"pythonClassName": TEXT}).encode(), "has no features by name"),
    "features that are none": (b'{"featuresDict": {"features": {"a": 3}}}', "has no features by"),
    "no features": (b'{"featuresDict": {"features": []}}', "has no features by name"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_description_that_cannot_be_read_is_one_message(folder, kind):
    content, message = DAMAGED[kind]
    (folder / "features.json").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^dataset 'pictures': .*{message}"):
        read(folder)


def test_a_description_that_is_no_file_is_not_read(folder):
    (folder / "features.json").unlink()
    os.mkfifo(folder / "features.json")
    with pytest.raises(ValueError, match="features.json is no regular file"):
        read(folder)


CHANGES = {
    "a template that leads out": (
        ("splits", 0, "filepathTemplate"),
        "../../{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "filepathTemplate '../../.*expected names of files within the folder",
    ),
    "an absolute template": (("splits", 0, "filepathTemplate"), "/etc/{SPLIT}", "filepathTemplate"),
    "a template that reads attributes": (
        ("splits", 0, "filepathTemplate"),
        "{SPLIT.__class__}",
        "filepathTemplate",
    ),
    "a name that leads out": (("name",), "../pictures", "'../pictures' as a name; expected one"),
    "a split that leads out": (("splits", 0, "name"), "a/../../b", "as a name; expected one word"),
    "another format": (("fileFormat",), "../x", "as a name; expected one word"),
    "negative lengths": (("splits", 0, "shardLengths"), ["-3"], "no whole numbers as shardLengths"),
    "huge lengths": (("splits", 0, "shardLengths"), [str(10**15)], "no whole numbers as shard"),
    "more files than there are": (("splits", 0, "shardLengths"), ["9"] * 3, "00003 is missing"),
    "no splits": (("splits",), None, "has no list of splits"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_names_and_numbers_of_a_description_are_checked(folder, kind):
    path, value, message = CHANGES[kind]
    info = json.loads((folder / "dataset_info.json").read_text())
    place = info
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=message):
        read(folder)


@pytest.mark.parametrize("count", ["0", "-1", "100001", "x", True, None, 10**17])
def test_a_number_of_classes_that_is_none_is_refused(folder, count):
    features = json.loads((folder / "features.json").read_text())
    features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = count
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(
        ValueError, match="label 'label' has no number of classes from 1 to 100,000"
    ):
        read(folder)


def test_labels_beyond_the_classes_are_found(folder):
    features = json.loads((folder / "features.json").read_text())
    features["featuresDict"]["features"]["label"]["classLabel"]["numClasses"] = "2"
    (folder / "features.json").write_text(json.dumps(features))
    data = Tfds("pictures", 4, str(folder.parents[1]))
    with pytest.raises(
        ValueError, match=r"image \d+ of train of pictures has the label 2; expected"
    ):
        data.images("train")
    assert len(data.check().problems) == 11  # Every third of 33 images.


def test_a_default_config_that_leads_out_is_refused(folder, tmp_path):
    root = folder.parents[1]
    (root / "other" / ".config").mkdir(parents=True)
    content = {"default_config_name": "../../outside"}
    (root / "other" / ".config" / "metadata.json").write_text(json.dumps(content))
    shutil.copytree(folder, tmp_path / "outside" / "1.0.0")
    with pytest.raises(ValueError, match="is outside the directory of prepared datasets"):
        Tfds("other", 4, str(root))


@pytest.mark.parametrize("inside", ["pictures", "pictures/1.0.0"])
def test_a_data_dir_that_is_too_deep_names_the_right_one(prepared, inside):
    with pytest.raises(ValueError, match=rf"lies within .*'pictures'; .* data_dir='{prepared}'$"):
        Tfds("pictures", 4, str(prepared / inside))


def test_whole_numbers_are_labels_if_their_number_is_given(tmp_path):
    prepared = write_tfds(tmp_path, Numbered)
    data = Tfds("numbered", 4, str(prepared))
    assert (data.num_labels, data.num_classes) == (1, 0)
    assert "its label is a whole number: set num_labels to use it" in data.summary.notes
    data = Tfds("numbered", 4, str(prepared), num_labels=3)
    assert set(data.images("train").label) == {0, 1, 2}
    with pytest.raises(ValueError, match="has the label 2; expected 0 to 1"):
        Tfds("numbered", 4, str(prepared), num_labels=2).images("train")


def test_a_prepared_dataset_says_what_it_is(folder):
    (folder / "label.labels.txt").write_text("cat\ndog\nemu\n")
    summary = Tfds("pictures", 4, str(folder.parents[1])).summary
    assert (summary.counts, summary.classes) == ({"train": 27, "test": 6}, ("cat", "dog", "emu"))
    sliced = Tfds("pictures", 4, str(folder.parents[1]), splits=("train[:20]", "test")).summary
    assert sliced.counts == {"train[:20]": 20, "test": 6}
    assert summary.fingerprint != sliced.fingerprint
    missing = Tfds("pictures", 4, str(folder), num_labels=3).summary
    assert (missing.classes, missing.fingerprint) == (("0", "1", "2"), "")
    assert missing.notes[0].startswith("not read here: data_dir ")


def test_a_copy_that_went_through_jpeg_has_another_name_if_its_dataset_is_without_loss(
    prepared, tmp_path, monkeypatch
):
    lossy = Tfds("lossy", 4, str(write_tfds(tmp_path, Lossy)))
    assert lossy.title == "lossy"  # As ImageNet, which is published as JPEG.
    monkeypatch.setattr(tfds, "LOSSLESS", ("lossy", "pictures"))
    assert lossy.title == "lossy-jpeg"
    assert Tfds("pictures", 4, str(prepared)).title == "pictures"


@pytest.mark.skipif(not CIFAR10.exists(), reason="the folder of CIFAR-10 is not there")
def test_the_copy_of_cifar10_beside_the_repository_is_named_by_its_jpeg():
    assert Tfds("cifar10", 32, str(CIFAR10)).title == "cifar10-jpeg"
