"""Tests of diversity and saturation in a report: the measures of samples, and the table."""

import numpy as np
import pytest

from distill_jax.data import DATASETS
from distill_jax.evaluation import diversity, report
from distill_jax.evaluation.protocols import make_evaluator, prompts_for

SHAPES = {"name": "shapes", "count": 3000, "tests": 64}


@pytest.fixture(scope="module")
def shapes():
    return make_evaluator(SHAPES)


@pytest.fixture(scope="module")
def pictures():
    """Returns training pictures of shapes in [-1, 1], with their captions."""
    data = DATASETS["shapes"](count=3000, tests=64)
    prompts = np.array(data.captions("train", 1000), object)
    return data.images("train", 1000).x / np.float32(127.5) - 1, prompts


def test_pictures_that_fade_to_grey_lose_chroma_and_contrast(shapes, pictures):
    x, prompts = pictures
    real = shapes.real(conditional=True)
    row = shapes.measure(x, prompts, None)
    for key in ("chroma", "contrast", "diversity"):
        assert row[key] == pytest.approx(real[key], rel=0.05), key
    grey = np.repeat(x.mean(axis=-1, keepdims=True), 3, axis=-1)
    assert shapes.measure(grey, prompts, None)["chroma"] < 0.01
    faded = shapes.measure(0.5 * x, prompts, None)
    assert faded["chroma"] < 0.8 * row["chroma"]
    assert faded["contrast"] < 0.8 * row["contrast"]
    # A root mean square of differences in [-1, 1] halves with them.
    assert faded["diversity"] == pytest.approx(0.5 * row["diversity"])


def test_a_sampler_with_one_picture_for_a_prompt_has_no_diversity(shapes, pictures):
    x, prompts = pictures
    first = {prompt: i for i, prompt in reversed([*enumerate(prompts)])}
    same = x[[first[prompt] for prompt in prompts]]
    assert shapes.measure(same, prompts, None)["diversity"] == pytest.approx(0, abs=1e-6)


def test_samples_that_repeat_prompts_count_only_for_diversity(shapes, pictures):
    x, prompts = pictures
    prompts = np.array(prompts_for(SHAPES, 100), object)
    row = shapes.measure(x[:100], prompts, x[:100])
    more = np.concatenate([prompts, np.repeat(prompts[:2], 8)])
    longer = shapes.measure(x[:116], more, x[:116], num=100)
    assert {**longer, "diversity": 0} == {**row, "diversity": 0}
    assert longer["diversity"] != row["diversity"]


def test_diversity_within_a_label_is_below_that_of_all_images(small_file):
    for features in ("", "small"):
        real = make_evaluator({"name": "digits"}, features)
        within, everywhere = (real.real(key) for key in (True, False))
        assert 0 < within["diversity"] < 0.8 * everywhere["diversity"]
        assert "chroma" not in within  # Digits are grey.
        assert within["contrast"] == everywhere["contrast"] > 10


def row_of(sampler, num_steps, w, **measures):
    return {"role": "", "sampler": sampler, "num_steps": num_steps, "w": w, **measures}


ROWS = [
    row_of("teacher", 2, 0.0, recall=0.4, diversity=4.0),
    row_of("teacher", 8, 0.0, recall=0.5, diversity=5.0),
    row_of("student, dmd2", 2, 0.0, recall=0.25, diversity=3.0),
    row_of("student, dmd2", 2, 1.0, recall=0.1),
]


def test_the_table_has_the_ratio_to_the_teacher_in_its_own_steps_at_the_same_w():
    text = diversity.table(ROWS, {"recall": 0.9, "diversity": 6.0})
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert cells[0] == ["sampler", "num_steps", "w", "recall", "diversity"]
    assert cells[2:] == [
        ["real images", "-", "-", "0.9", "6"],
        ["teacher", "2", "0", "0.4 (0.80)", "4 (0.80)"],
        ["teacher", "8", "0", "0.5", "5"],
        ["student, dmd2", "2", "0", "0.25 (0.50)", "3 (0.60)"],
        ["student, dmd2", "2", "1", "0.1", "-"],
    ]


def test_the_table_of_all_measures_has_none_of_these():
    titles = report.rows_table(ROWS).splitlines()[0]
    assert "recall" in titles and "diversity" not in titles


def test_a_report_of_an_earlier_version_has_no_such_part():
    assert diversity.section({"rows": ROWS}) == ""


def test_the_definition_says_which_samples_were_added():
    assert "further samples" not in diversity.definition("the features", 0)
    text = diversity.definition("the features", 128)
    assert "128 further samples were drawn, 8 for each of 16 of them, because" in text
