"""Tests of the scenes of coloured shapes, and of the dataset of them."""

import numpy as np
import pytest

from distill_jax.data import DATASETS, scenes
from distill_jax.data.shapes import seen

ATTRIBUTES = ("colour", "shape", "relation", "count", "all")


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(0)
    every = scenes.all_scenes()
    chosen = [every[i] for i in rng.permutation(len(every))[:400]]
    return chosen, scenes.draw(chosen, rng)


def test_counts():
    assert len(scenes.all_scenes()) == 24 + 24 * 20 * 4
    assert len(seen()) == 1348 and sum(len(scene.objects) == 1 for scene in seen()) == 20


def test_captions_can_be_parsed():
    for scene in scenes.all_scenes():
        assert scenes.parse(scene.caption) == scene


@pytest.mark.parametrize(
    "caption",
    [
        "",
        "a circle",
        "a red",
        "a red circle above",
        "a red circle near a blue square",
        "a red circle above a red square",
        "a red circle a blue square",
        "a pink circle",
        "the red circle",
    ],
)
def test_other_captions_are_refused(caption):
    with pytest.raises(ValueError, match="describes no scene"):
        scenes.parse(caption)


def test_every_attribute_is_read_back(drawn):
    chosen, pictures = drawn
    found = scenes.read(pictures, chosen)
    for name in ATTRIBUTES:
        assert getattr(found, name).all(), name


def test_pictures_do_not_show_other_captions(drawn):
    chosen, pictures = drawn
    found = scenes.read(pictures, chosen[1:] + chosen[:1])
    assert found.all.mean() < 0.02 and found.colour.mean() < 0.15


@pytest.mark.parametrize(
    ("drawn_as", "asked", "wrong"),
    [
        ("a red circle", "a blue circle", {"colour", "shape", "relation", "all"}),
        ("a red circle", "a red square", {"shape", "all"}),
        ("a red circle above a blue square", "a red circle", {"count", "all"}),
        ("a red circle", "a red circle above a blue square", set(ATTRIBUTES)),
        (
            "a red circle above a blue square",
            "a red circle below a blue square",
            {"relation", "all"},
        ),
        (
            "a red circle above a blue square",
            "a red circle left of a blue square",
            {"relation", "all"},
        ),
        (
            "a red circle above a blue square",
            "a blue circle above a red square",
            {"shape", "relation", "all"},
        ),
    ],
)
def test_each_error_is_seen(drawn_as, asked, wrong):
    rng = np.random.default_rng(1)
    pictures = scenes.draw([scenes.parse(drawn_as)] * 20, rng)
    found = scenes.read(pictures, [scenes.parse(asked)] * 20)
    for name in ATTRIBUTES:
        assert (getattr(found, name) == (name not in wrong)).all(), name


def test_blank_and_noisy_pictures_show_nothing():
    asked = [scenes.parse("a red circle")] * 10
    blank = np.full((10, 16, 16, 3), 255, np.uint8)
    noise = np.random.default_rng(0).integers(256, size=blank.shape).astype(np.uint8)
    for pictures in (blank, noise):
        assert not scenes.read(pictures, asked).all.any()


def test_middles_are_where_the_objects_are():
    rng = np.random.default_rng(0)
    single = [scenes.parse("a green square")] * 500
    centre = scenes.read(scenes.draw(single, rng), single).centre
    assert np.allclose(centre.std(axis=0), scenes.SINGLE / 3**0.5, atol=0.08)
    assert np.allclose(centre.mean(axis=0), scenes.SIDE / 2, atol=0.15)


def test_other_pictures_are_refused():
    asked = [scenes.parse("a red circle")]
    with pytest.raises(ValueError, match="expected uint8"):
        scenes.read(np.zeros((1, 16, 16, 3), np.float32), asked)
    with pytest.raises(ValueError, match="expected uint8"):
        scenes.read(np.zeros((2, 16, 16, 3), np.uint8), asked)


def test_dataset_has_no_held_out_pair_and_its_captions_are_right():
    data = DATASETS["shapes"](count=300, tests=100)
    for split, count in (("train", 300), ("test", 100)):
        x, shown = data.images(split).x, [scenes.parse(text) for text in data.captions(split)]
        assert len(x) == count and not any(scene.held_out for scene in shown)
        assert scenes.read(x, shown).all.all()
    singles = np.mean([len(scenes.parse(c).objects) == 1 for c in data.captions("train")])
    assert 0.15 < singles < 0.35


def test_a_sample_has_its_captions():
    data = DATASETS["shapes"](count=100, tests=64)
    few = data.images("test", 10).x
    assert scenes.read(few, [scenes.parse(text) for text in data.captions("test", 10)]).all.all()


def test_batches_pair_pictures_with_captions():
    data = DATASETS["shapes"](count=100, tests=64)
    rows = next(data.batches(0, 3, 32))
    shown = [scenes.parse(caption) for caption in rows.cond["caption"]]
    assert scenes.read(rows.x, shown).all.all()
    halves = [next(data.batches(0, 3, 32, (i, 2))) for i in (0, 1)]
    assert np.array_equal(np.concatenate([half.x for half in halves]), rows.x)
    assert data.null["caption"].tolist() == [""]


def test_prompts_are_those_of_the_pictures():
    data = DATASETS["shapes"](count=100, tests=64)
    rows = next(data.without_images().batches(0, 0, 64))
    assert rows.x is None and set(rows.cond["caption"]) <= set(data.captions("train"))
