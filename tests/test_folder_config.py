"""Tests of configs/folder.py: the network and the updates follow from the images."""

import json

import pytest

from distill_jax.config import OwnImages, folder_chain, own, own_images
from distill_jax.data import decoding, layouts
from distill_jax.data.layouts import layout
from distill_jax.data.listing import listing
from distill_jax.run import plan
from distill_jax.runtime.config_file import load_file
from tests.data.pictures import picture, png, write_folder
from tests.toys import ROOT


def config_of(text):
    return load_file(ROOT / "configs" / "folder.py").get_config(text)


def put(root, *names, side=8):
    """Writes square images of these names, and returns the folder."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(picture(1, side, side)))
    return root


@pytest.mark.parametrize(
    ("folders", "labelled"),
    [
        (("",), False),
        (("cat/", "dog/"), True),
        (("train/", "val/"), False),
        (("train/cat/", "train/dog/", "val/cat/"), True),
        (("", ".hidden/"), False),
    ],
)
def test_class_folders_are_found_as_the_dataset_finds_them(tmp_path, folders, labelled):
    put(tmp_path, *(f"{folder}{i}.png" for folder in folders for i in range(8)))
    assert own_images(str(tmp_path)).labelled is labelled
    assert (layout(listing(tmp_path)).classes != ("",)) is labelled


def test_suffixes_and_names_of_splits_are_those_of_the_dataset():
    assert set(own.SUFFIXES) == set(decoding.SUFFIXES)
    assert set(own.SPLITS) == {*layouts.TRAIN, *layouts.TEST}


@pytest.mark.parametrize("content", ["{", "[1]", "{}", "[" * 100_000])
def test_a_damaged_table_is_left_to_the_dataset(tmp_path, content):
    put(tmp_path, "00000/a.png")
    (tmp_path / "dataset.json").write_text(content)
    assert not own_images(str(tmp_path)).labelled


@pytest.mark.parametrize(("labels", "labelled"), [(None, False), ([["00000/a.png", 0]], True)])
def test_the_folders_of_edm_are_no_classes(tmp_path, labels, labelled):
    put(tmp_path, "00000/a.png")
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
    assert own_images(str(tmp_path)).labelled is labelled


def test_the_size_is_the_median_of_the_shorter_sides(tmp_path):
    for side, name in zip((20, 70, 90), "abc", strict=True):
        put(tmp_path, f"{name}.png", side=side)
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert own_images(str(tmp_path)) == OwnImages(str(tmp_path), 4, 70.0, False)


@pytest.mark.parametrize(
    ("shorter", "words", "side"),
    [(20.0, (), 32), (70.0, (), 64), (500.0, (), 64), (500.0, ("128",), 128)]
    + [(500.0, ("small",), 32), (500.0, ("small", "64"), 64)],
)
def test_the_side_needs_no_enlarging(shorter, words, side):
    config = folder_chain(OwnImages("x", 100, shorter, True), words)
    assert config.data.size == side


def test_more_images_have_a_larger_network_and_more_updates():
    found = [folder_chain(OwnImages("x", n, 64.0, True)) for n in (100, 5_000, 50_000)]
    assert [c.model.channels for c in found] == [64, 96, 128]
    assert [c.stages.s00_teacher.steps for c in found] == [20_000, 60_000, 200_000]


@pytest.mark.parametrize("side", [32, 64, 128])
def test_the_small_network_takes_latents_of_every_side(side, tmp_path):
    config = config_of(f"{write_folder(tmp_path / 'classes')},small,{side}")
    run = plan.make(config, tmp_path / "run")
    assert run.stages[0].roles.student.spec.shape == (side // 4, side // 4, 24)
    assert [stage.name for stage in run.stages][1:3] == ["s01_guided", "s02_n0016"]


def test_a_chain_without_classes_is_not_guided(tmp_path):
    config = config_of(f"{write_folder(tmp_path / 'plain', classes=('',))},small")
    run = plan.make(config, tmp_path / "run")
    assert [stage.name for stage in run.stages][1] == "s01_n0016"
    assert "no classes" in plan.show(run)
    config = config_of(f"{write_folder(tmp_path / 'classes')},small")
    assert "s01_guided" in plan.show(plan.make(config, tmp_path / "run"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "/nowhere",
            r"unknown size '/nowhere' of the config; .*, or a folder .*; /nowhere does not exist",
        ),
        ("/proc/self/fd", r"\(.bmp .*; /proc/self/fd has none; unpack a zip first"),
        ("full,48", "unknown word '48' after the folder; known: small, 32, 64, 128"),
        ("full,smal", "unknown word 'smal'"),
    ],
)
def test_a_bad_folder_or_word_is_one_message(text, message):
    with pytest.raises(ValueError, match=message):
        config_of(text)
