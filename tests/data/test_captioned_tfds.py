"""Tests of datasets with captions that TFDS prepared."""

import json

import numpy as np
import pytest
from tensorflow_datasets.proto import tf_example_pb2

from distill_jax.data import DATASETS, Dataset
from distill_jax.data.tfds_folder import open_folder
from distill_jax.run.data import show
from tests.data.pictures import Told, picture, write_tfds

SINGLE, SEVERAL = ("caption", "plain", "told/en"), ("lines", "captions/text")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_tfds(tmp_path_factory.mktemp("told"), Told)


def load(root, caption, **options):
    return DATASETS["captioned_tfds"]("told", 8, caption, str(root), **options)


def number(x):
    """Returns the number of a picture."""
    known = {picture(i)[:, 1:9].tobytes(): i for i in (*range(27), *range(100, 106))}
    return known[x.tobytes()]


@pytest.mark.parametrize("caption", [*SINGLE, *SEVERAL])
def test_captions_are_those_of_their_images(root, caption):
    data = load(root, caption)
    assert isinstance(data, Dataset)
    for split, count in (("train", 27), ("test", 6)):
        shown = [number(x) for x in data.images(split).x]
        assert len(shown) == count
        empty = caption in SEVERAL
        known = ["" if empty and i % 9 == 8 else f"picture {i}" for i in shown]
        assert data.captions(split) == known
        assert set(data.images(split).label) == {0}
    assert data.check().problems == []
    assert data.num_labels == 1
    assert data.null["caption"].tolist() == [""]


@pytest.mark.parametrize("caption", ["caption", "captions/text"])
def test_batches_are_a_function_of_seed_and_step(root, caption):
    whole = next(load(root, caption).batches(3, 2, 8))
    parts = [next(load(root, caption).batches(3, 2, 8, (i, 2))) for i in (0, 1)]
    texts = whole.cond["caption"].tolist()
    assert np.concatenate([part.cond["caption"] for part in parts]).tolist() == texts
    for x, text in zip(whole.x, texts, strict=True):
        i = number(x)
        empty = caption == "captions/text" and i % 9 == 8
        assert text in ([""] if empty else [f"picture {i}", f"again {i}"])


def test_several_captions_take_turns_and_serve_methods_without_images(root):
    data = load(root, "lines")
    batches = data.batches(0, 0, 16)
    seen = [text for _ in range(20) for text in next(batches).cond["caption"]]
    assert {text[:5] for text in seen} == {"pictu", "again", ""}
    prompts = data.without_images()
    assert prompts.summary.captions == {"all": 48, "different": 48}  # Of 24 images of 27.


def test_the_plan_names_the_feature(root):
    data = load(root, "captions/text")
    assert "captions of captions/text" in show("captioned_tfds", data)[0]
    other = load(root, "caption").summary.fingerprint
    assert data.summary.fingerprint != other
    assert load(root, "caption").summary.fingerprint == other
    labelled = DATASETS["tfds"]("told", 8, str(root))
    assert labelled.num_labels == 3
    assert labelled.summary.fingerprint != other


@pytest.mark.parametrize(
    ("caption", "message"),
    [
        ("captoin", "has no text 'captoin'; its texts are: caption, captions/text, .*you mean 'ca"),
        ("captions/id", "has no text 'captions/id'"),
        ("label", "has no text 'label'"),
        ("image", "has no text 'image'"),
    ],
)
def test_a_feature_that_is_no_text_is_one_message(root, caption, message):
    with pytest.raises(ValueError, match=message):
        load(root, caption)


def test_a_caption_of_other_bytes_is_found_by_the_check(root, monkeypatch):
    data = load(root, "caption")
    whole = tf_example_pb2.Example.FromString

    def damaged(content):
        example = whole(content)
        example.features.feature["caption"].bytes_list.value[0] = b"caf\xe9"
        return example

    assert len(data.train) == 27
    monkeypatch.setattr(tf_example_pb2.Example, "FromString", damaged)
    problems = data.check().problems
    assert len(problems) == 33
    assert "has a caption that is no UTF-8" in problems[0]


def test_a_name_that_is_none_is_one_line(root):
    with pytest.raises(ValueError, match="^dataset '/etc/passwd': .*") as caught:
        DATASETS["captioned_tfds"]("/etc/passwd", 8, "caption", str(root))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("entry", [3, {}, {"feature": 3}, {"feature": {"sequence": {}}}, None])
def test_descriptions_of_sequences_may_be_anything(root, tmp_path, entry):
    folder = tmp_path / "told" / "1.0.0"
    folder.mkdir(parents=True)
    for file in (root / "told" / "1.0.0").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    content = json.loads((folder / "features.json").read_text())
    content["featuresDict"]["features"]["lines"]["sequence"] = entry
    (folder / "features.json").write_text(json.dumps(content))
    assert "lines" not in open_folder("told", str(tmp_path)).texts
