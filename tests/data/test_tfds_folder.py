"""A prepared dataset is only data: no class that its files name is imported."""

import json
import os
import shutil
import sys

import pytest
from tensorflow_datasets.core import read_only_builder

from distill_jax.data.tfds import Tfds
from distill_jax.data.tfds_folder import FEATURES, MAX_BYTES

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


FORGED = [("features.json", kind) for kind in DESCRIPTIONS]
# The other file holds a protocol buffer, which the old versions did not have.
FORGED += [("dataset_info.json", kind) for kind, old in DESCRIPTIONS.items() if "type" not in old]


@pytest.mark.parametrize(("file", "kind"), FORGED)
def test_a_class_that_is_not_of_tfds_is_refused_and_not_imported(folder, file, kind):
    described = DESCRIPTIONS[kind]
    if file == "dataset_info.json":
        described = json.loads((folder / file).read_text()) | {"features": described}
    (folder / file).write_text(json.dumps(described))
    with pytest.raises(
        ValueError, match=rf"dataset 'pictures': .*/{file} names the class '{EVIL}'"
    ):
        read(folder)
    executed = folder.parents[2] / "executed"
    assert not executed.exists()
    # What TFDS does by itself, without which this test would show nothing.
    with pytest.raises(Exception, match="Unrecognized FeatureConnector type"):
        read_only_builder.builder_from_directory(folder)
    assert executed.exists()


DAMAGED = {
    "no JSON": (b"{", "is no JSON"),
    "no object": (b"[]", "holds no object"),
    "nested too deeply": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "cannot be read"),
    "too long": (b" " * (MAX_BYTES + 1), "has more than 4,194,304 bytes"),
    "unknown fields": (json.dumps({"pythonClassName": TEXT, "no": 1}).encode(), "cannot be read"),
    "missing fields": (json.dumps({"type": TEXT}).encode(), "cannot be read"),
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
    with pytest.raises(ValueError, match="features.json is missing"):
        read(folder)


def test_the_features_of_tfds_have_the_names_of_its_files():
    names = {name.rpartition(".")[2] for name in FEATURES}
    assert {"ClassLabel", "FeaturesDict", "Image", "Scalar", "Sequence", "Tensor", "Text"} <= names
    assert all(name.startswith("tensorflow_datasets.core.features.") for name in FEATURES)
