"""Tests of files with prompts, and of the dataset of prompts without images."""

import itertools
import json

import numpy as np
import pytest

from distill_jax.data import DATASETS, Dataset
from distill_jax.data.base import has_images, summarise
from distill_jax.data.prompts import captions_of, prompts_in, read_prompts
from distill_jax.run.data import record, show


def load(path, **options):
    return DATASETS["prompts"](str(path), 8, **options)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_line_is_a_prompt(tmp_path):
    data = load(write(tmp_path / "a.txt", "a red circle\n\n  a blue cross \na red circle\n"))
    assert isinstance(data, Dataset)
    assert data.prompts == ("a red circle", "a blue cross", "a red circle")
    assert data.spec.x.shape == (8, 8, 3)
    assert load(tmp_path / "a.txt", channels=1).spec.x.shape == (8, 8, 1)
    assert data.null["caption"].tolist() == [""]
    assert not has_images(data)
    assert data.without_images() is data
    assert show("prompts", data) == [
        "data: prompts, 3 prompts without images, 2 different",
        "  passed over: 1 lines without a prompt",
    ]
    assert record(data)["captions"] == {"all": 3, "different": 2}


def test_batches_are_a_function_of_seed_and_step_and_draw_by_frequency(tmp_path):
    data = load(write(tmp_path / "a.txt", "a\na\na\nb\n"))
    batches = list(itertools.islice(data.batches(1, 0, 64), 8))
    texts = np.concatenate([batch.cond["caption"] for batch in batches])
    assert 0.65 < np.mean(texts == "a") < 0.85
    assert all(batch.x is None for batch in batches)
    halves = [next(data.batches(1, 5, 64, (i, 2))).cond["caption"] for i in (0, 1)]
    assert np.concatenate(halves).tolist() == batches[5].cond["caption"].tolist()


@pytest.mark.parametrize(
    "content",
    [
        "\ufeffa b\nc",
        "a b\r\nc\r\n",
        "a b\rc",
        "\n\n a b\t\nc\n\n",
    ],
)
def test_line_ends_marks_and_space_do_not_matter(tmp_path, content):
    assert prompts_in(str(write(tmp_path / "a.txt", content)))[0] == ["a b", "c"]


def test_unusual_separators_do_not_end_a_prompt(tmp_path):
    text = "a\u2028b\x85c\x0bd"
    assert prompts_in(str(write(tmp_path / "a.txt", text))) == ([text], 0)


def test_a_jsonl_has_prompts_under_one_of_three_keys(tmp_path):
    rows = [
        {"text": "a", "prompt": "not this"},
        {"caption": ["b", " ", "c"]},
        {"prompt": "d\n"},
        {"prompt": None},
        {"text": ""},
        {"text": "\ud800"},
    ]
    lines = "\n".join(map(json.dumps, rows)) + "\n\n"
    found = prompts_in(str(write(tmp_path / "a.jsonl", lines)))
    assert found == (["a", "b", "c", "d", "?"], 3)
    assert read_prompts(str(tmp_path / "a.jsonl"), 7) == ["a", "b", "c", "d", "?", "a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "", "a.txt has no prompt; expected one in each line"),
        ("a.txt", " \n\t\r\n", "a.txt has no prompt; expected one in each line"),
        ("a.jsonl", '{"text": ""}\n', "a.jsonl has no prompt; expected one in each line"),
        ("a.txt", b"caf\xe9\n", "a.txt is no text in UTF-8 .*; save it as UTF-8"),
        ("a.txt", "a b\n".encode("utf-16"), "a.txt is no text in UTF-8"),
        ("a.txt", "a b\n".encode("utf-16-le"), "a.txt has NUL in its text; save it as UTF-8"),
        ("a.jsonl", '{"text": "a"}\n{"text": ', "a.jsonl, line 2, is no JSON object"),
        ("a.jsonl", '["a"]\n', "a.jsonl, line 1, is no JSON object; got .'a'.|got ."),
        ("a.jsonl", '{"txt": "a"}\n', "a.jsonl, line 1, has none of text, caption, prompt"),
        ("a.jsonl", '{"text": 3}\n', "a.jsonl, line 1, has no text or list of texts in 'text': 3"),
        ("a.jsonl", "[" * 10**5, "a.jsonl, line 1, is no JSON object"),
    ],
)
def test_a_file_without_prompts_is_one_message(tmp_path, name, content, message):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=message) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_file_is_one_message(tmp_path):
    with pytest.raises(ValueError, match="cannot be read as prompts: FileNotFoundError"):
        load(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="is no regular file"):
        load(tmp_path)


def test_other_prompts_have_another_fingerprint(tmp_path):
    prints = [
        summarise(load(write(tmp_path / "a.txt", text))).fingerprint
        for text in ("a\nb", "a\nb\n", "b\na", "a\nb\nb")
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_samples_are_fixed_and_there_are_no_images(tmp_path):
    data = load(write(tmp_path / "a.txt", "\n".join(map(str, range(100)))))
    few = captions_of(data, "test", 5)
    assert few == captions_of(data, "test", 5)
    assert len(set(few)) == 5
    assert captions_of(data, "test") == [*data.prompts]
    with pytest.raises(ValueError, match="the data have prompts only, and no images"):
        data.images("train")
