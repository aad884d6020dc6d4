"""Tests of sheets: where images and captions are, and what the files hold."""

import json

import numpy as np
import PIL.Image
import pytest
from etils import epath
from PIL import ImageFont

from distill_jax.evaluation import sheets
from distill_jax.evaluation.pictures import prompts_of

RNG = np.random.default_rng(0)


def cells(count, side, channels=3):
    return [RNG.integers(0, 256, (side, side, channels), np.uint8) for _ in range(count)]


def test_images_are_enlarged_without_smoothing_and_have_a_gap():
    x = (np.arange(3 * 8 * 8).reshape(3, 8, 8, 1) / 96 - 1).astype(np.float32)
    found = np.asarray(sheets.grid(x, 2, side=20))
    assert found.shape == (2 * 18, 2 * 18)
    first = found[1:17, 1:17]
    np.testing.assert_array_equal(first, first[::2, ::2].repeat(2, 0).repeat(2, 1))
    assert first[0, 0] == 0
    assert set(found[0]) == set(found[17]) == {255}
    assert set(found[19:35, 19:35].ravel()) == {0}  # The cell that is left over is black.


def test_images_of_a_scale_wise_student_are_as_large_as_the_last():
    rows = [[cells(1, side)[0] for side in (4, 8, 16)]]
    found = np.asarray(sheets.sheet(rows, side=16))
    for i, image in enumerate(rows[0]):
        inner = found[1:17, 18 * i + 1 : 18 * i + 17]
        np.testing.assert_array_equal(inner[:: 2 ** (2 - i), :: 2 ** (2 - i)], image)


def test_captions_are_below_their_images_and_names_above_their_rows():
    rows, texts = [cells(2, 64), cells(2, 64)], [["one two three", ""], ["", "x"]]
    plain, told = sheets.sheet(rows), sheets.sheet(rows, texts, names=["first", "second"])
    assert plain.size == (2 * 66, 2 * 66)
    assert told.width == plain.width and told.height > plain.height + 4 * sheets.FONT
    ink = np.asarray(told.convert("L")) < 128
    above, below = sheets.FONT * 3 // 2, sheets.FONT * 3 // 2 + 66
    assert ink[:above].any()
    assert ink[below : below + 14, :66].any() and not ink[below : below + 14, 66:].any()
    image = np.asarray(told)[above + 1 : above + 65, 1:65]
    np.testing.assert_array_equal(image, rows[0][0])


@pytest.mark.parametrize("text", ["a b", "red square left of a blue circle " * 3, "w" * 90, ""])
def test_a_caption_is_as_wide_as_its_image(text):
    font = ImageFont.load_default(sheets.FONT)
    lines = sheets._lines(text, font, 66)
    assert len(lines) <= sheets.LINES
    assert all(font.getlength(line) <= 66 for line in lines)
    whole = " ".join(lines) == text.strip()
    assert whole == (text in ("a b", "")) and whole != lines[-1].endswith("...")


@pytest.mark.parametrize("suffix", sheets.FORMATS)
def test_a_file_of_every_format_has_its_facts(tmp_path, suffix):
    frames, facts = [sheets.grid(np.stack(cells(4, 48)), 2) for _ in range(3)], {"prompts": "a\nb"}
    path = tmp_path / f"x{suffix.upper()}"
    sheets.save(path, frames if suffix == ".gif" else frames[0], facts)
    with PIL.Image.open(path) as found:
        assert found.format == sheets.FORMATS[suffix]
        assert found.size == (100, 100)
        if suffix == ".png":
            assert prompts_of(epath.Path(path)) == ["a", "b"]
            np.testing.assert_array_equal(np.asarray(found), np.asarray(frames[0]))
        elif suffix == ".gif":
            assert (found.n_frames, json.loads(found.info["comment"])) == (3, facts)
            found.seek(2)
            assert found.info["duration"] == sheets.LAST
        else:
            assert json.loads(found.getexif()[sheets.DESCRIPTION]) == facts


def test_another_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"x.tif ends in none of .png, .jpg, .jpeg, .webp, .gif"):
        sheets.save(tmp_path / "x.tif", sheets.grid(np.zeros((1, 4, 4, 1), np.float32), 1))
