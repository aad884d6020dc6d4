import numpy as np
import pytest

import distill_jax
from distill_jax.sampling.batched import EACH, Draw, repeats


@pytest.fixture(scope="module")
def student(chain):
    return distill_jax.load(chain / "s06_n0002")


def counts(asked):
    return dict(zip(*np.unique(asked, return_counts=True), strict=True))


def test_nothing_is_repeated_where_conditions_repeat_already_or_there_are_none():
    assert len(repeats(None)) == 0
    assert len(repeats(np.arange(500) % 10)) == 0
    assert len(repeats(np.arange(2000) % 1000)) == 0
    assert len(repeats(np.zeros(40, int))) == 0


def test_labels_that_do_not_repeat_are_repeated_across_all_of_them():
    found = repeats(np.arange(500))
    assert set(counts(found).values()) == {EACH}
    assert len(found) == 15 * EACH <= 500 / 4
    assert np.diff(np.unique(found)).max() < 40
    assert len(repeats(np.arange(2000))) == 16 * EACH
    assert len(repeats(np.arange(10))) == EACH  # One label at least.


def test_prompts_that_seldom_repeat_are_repeated():
    prompts = np.array([f"prompt {i % 450}" for i in range(500)], object)
    found = repeats(prompts)
    assert found.dtype == object and set(found) <= set(prompts)
    assert len(found) == 15 * EACH


def test_further_samples_follow_the_others_which_stay_the_same(student):
    classes = student.num_classes
    draw = Draw(4, batch=6)
    longer = draw.with_repeats(student)
    assert longer.num == 4 + EACH
    asked = longer.asked(student)
    np.testing.assert_array_equal(asked[:4], np.arange(4) % classes)
    assert len(set(asked[4:])) == 1 and asked[4] in asked[:4]
    x, few = longer(student, None)[0], draw(student, None)[0]
    np.testing.assert_allclose(x[:4], few, atol=1e-5)
    assert len(x) == longer.num
    assert len(Draw(3 * classes).with_repeats(student).asked(student)) == 3 * classes
