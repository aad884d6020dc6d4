"""The tokenizer gives the numbers of Hugging Face's, see models/pretrained/make.py."""

import json
import pathlib

import numpy as np
import pytest

from distill_jax.sampling.tokenizer import read_tokenizer, tokenizer_of
from tests.models.pretrained import PROMPTS, vocabulary

RECORDED = np.load(pathlib.Path(__file__).parents[1] / "models" / "pretrained" / "recorded.npz")
TOKENS, MERGES = vocabulary()
END = len(TOKENS) - 1


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    (tmp_path / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]))
    return tmp_path


def test_numbers_are_those_of_hugging_face(folder):
    ids, notes = read_tokenizer(folder, 30)(PROMPTS)
    np.testing.assert_array_equal(ids, RECORDED["ids"])
    assert len(notes) == (np.sum(ids != END, axis=1) == 29).sum() == 2


def test_the_file_of_the_library_gives_the_same_numbers(tmp_path):
    (tmp_path / "tokenizer").mkdir()  # The folder in a directory of a whole pipeline.
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(str(RECORDED["tokenizer_json"]))
    ids, _ = read_tokenizer(tmp_path, 30)(PROMPTS)
    np.testing.assert_array_equal(ids, RECORDED["ids"])


def test_pieces_of_words_have_the_numbers_of_hugging_face(tmp_path):
    (tmp_path / "tokenizer.json").write_text(str(RECORDED["pieces_json"]))
    with pytest.raises(ValueError, match="it is not CLIP's"):
        read_tokenizer(tmp_path)
    ends = ("[CLS]", "[SEP]")
    tokenizer = read_tokenizer(tmp_path, 30, ends, "[PAD]")
    ids, notes = tokenizer(PROMPTS)
    np.testing.assert_array_equal(ids, RECORDED["pieces_ids"])
    assert len(notes) == 1
    again = tokenizer_of(tokenizer.text, 4, ends, tokenizer.pad_token)
    assert again(["then that"])[1] == [
        "the prompt 'then that' has 5 tokens, and the network takes 4: 'that' is cut"
    ]
    assert "'n' is cut" in tokenizer_of(tokenizer.text, 3, ends, "[PAD]")(["then"])[1][0]
    for text, pad, message in (
        ("{", "[PAD]", "cannot be read"),
        (tokenizer.text, "[NONE]", "has no token '.NONE.', its pad_token"),
        (tokenizer.text.replace("[SEP]", "[END]"), "[PAD]", r"has no \[CLS\] or \[SEP\]"),
    ):
        with pytest.raises(ValueError, match=message):
            tokenizer_of(text, 4, ends, pad)


def test_a_cut_prompt_is_said_with_its_end(folder):
    tokenizer = read_tokenizer(folder, 6)
    ids, notes = tokenizer(["the that the that", "the that the that the then"])
    assert (ids[1] == [END - 1, *ids[0, 1:5], END]).all()
    assert notes == [
        "the prompt 'the that the that the then' has 8 tokens, and the network takes 6: "
        "'the then' is cut"
    ]


def test_a_prefix_comes_before_every_prompt_and_leaves_room_for_the_end(folder):
    tokenizer = read_tokenizer(folder, 6)
    ids, notes = tokenizer(["that", "that that that that"], prefix="the the ")
    expected, _ = tokenizer(["the the that", "the the that that that that"])
    np.testing.assert_array_equal(ids, expected)
    assert len(notes) == 1


def test_entities_are_replaced_on_request(folder):
    tokenizer = read_tokenizer(folder, 20)
    plain, escaped = tokenizer(["a & b", "a &amp;amp; b"], unescape=True)[0]
    np.testing.assert_array_equal(plain, escaped)
    assert (tokenizer(["a &amp; b"])[0][0] != plain).any()


def test_the_token_that_fills_up_is_that_of_the_config(folder):
    assert read_tokenizer(folder).pad == END
    place = folder / "tokenizer_config.json"
    place.write_text('{"pad_token": {"content": "!"}, "model_max_length": 1' + 30 * "0" + "}")
    assert read_tokenizer(folder).pad == TOKENS.index("!")
    assert (read_tokenizer(folder)(["the"])[0][0, 3:] == TOKENS.index("!")).all()
    place.write_text('{"pad_token": "nothing like it"}')
    with pytest.raises(ValueError, match="has no token 'nothing like it', its pad_token"):
        read_tokenizer(folder)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("merges.txt", "t h e\n", "cannot be read .*a line of merges.txt has not two parts"),
        ("merges.txt", "t q\n", "cannot be read .*download it again"),
        ("vocab.json", '{"a": "b"}', "a token of vocab.json has no number"),
        ("vocab.json", '{"a": 0}', "vocab.json has no .*: it is not CLIP's"),
        ("vocab.json", "[" * 100, "cannot be read .*no readable JSON"),
        ("tokenizer_config.json", "[1]", "cannot be read"),
        ("tokenizer_config.json", '{"pad_token": 3}', "the pad_token is 3"),
    ],
)
def test_damaged_files_are_refused(folder, file, content, message):
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_tokenizer(folder)


def test_a_directory_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="has no tokenizer; expected CLIP's vocab.json and merges"):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be read .*download it again"):
        read_tokenizer(tmp_path)
