"""The commands reference and evaluate --images: numbers, protocols and messages."""

import json

import numpy as np
import pytest
from etils import epath

from distill_jax.data import DATASETS
from distill_jax.diffusion.pixels import to_uint8
from distill_jax.evaluation import image_files
from distill_jax.evaluation.feature_networks import load_network
from distill_jax.evaluation.quality import measure
from distill_jax.evaluation.references import make_reference, read_reference
from tests import forks
from tests.evaluation.test_quality import pictures
from tests.test_commands import one_message


@pytest.fixture(scope="module")
def run(small_file):
    """Returns a function that runs a command with the feature network "small"."""

    def call(command, *flags, folder=small_file.parent):
        return forks.run("tests.evaluation.with_small", folder, command, *flags)

    return call


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """Returns a folder with a set of samples, and a reference of 200 images of digits."""
    folder = epath.Path(tmp_path_factory.mktemp("images"))
    made = {"stage": "s01_guided", "w": 1.5, "seed": 7}
    samples = image_files.Unfinished(folder / "samples", 40, (8, 8, 1), made)
    samples.add(0, to_uint8(DATASETS["digits"]().images("test", 40).x))
    samples.finish(None)
    flags = ["--config=configs/digits_guided.py", "--features=small", "--num=200"]
    code, stdout, stderr = run("reference", *flags, f"--out={folder / 'ref.npz'}")
    assert code == 0, stderr
    assert "digits, split train, 200 images as uint8, features of small, weights " in stdout
    return folder


def test_a_reference_is_that_of_the_images_of_the_dataset(folder, small_file):
    network = load_network("small", small_file)
    images = to_uint8(DATASETS["digits"]().images("train", 200).x)
    expected = make_reference("digits", "train", [images], network)
    found, _ = read_reference(folder / "ref.npz", network)
    np.testing.assert_allclose(found.moments.mean, expected.moments.mean, rtol=1e-5)
    assert (found.name, found.split, found.num) == ("digits", "train", 200)


def test_images_are_scored_with_a_protocol_that_says_how_they_were_made(run, folder, small_file):
    flags = [f"--images={folder / 'samples'}", f"--reference={folder / 'ref.npz'}"]
    out = folder / "scores.json"
    code, stdout, stderr = run("evaluate", *flags, "--features=small", "--infinity", f"--out={out}")
    assert code == 0, stderr
    assert "| FD-small " in stdout
    assert "protocol: features small@" in stdout
    assert "n 40, stage s01_guided, w 1.5, seed 7" in stdout
    assert "* 40 images are few for 32 features: FD-small is biased upwards" in stdout
    found = json.loads(out.read_text())["scores"]
    network = load_network("small", small_file)
    reference, _ = read_reference(folder / "ref.npz", network)
    images = to_uint8(DATASETS["digits"]().images("test", 40).x)
    expected = measure([images], network, reference, infinity=True)
    assert set(found) == set(expected)
    for name, score in expected.items():
        assert found[name]["value"] == pytest.approx(score.value, rel=1e-3, abs=1e-5)


def test_a_reference_of_a_folder_of_images_is_at_distance_0_from_them(run, folder):
    images, out = f"--images={folder / 'samples'}", folder / "own.npz"
    code, _, stderr = run("reference", images, "--features=small", "--name=own", f"--out={out}")
    assert code == 0, stderr
    flags = images, f"--reference={out}", "--features=small"
    code, stdout, stderr = run("evaluate", *flags)
    assert code == 0, stderr
    assert "reference own@" in stdout
    (row,) = (line for line in stdout.splitlines() if line.startswith("| FD-small "))
    assert float(row.split("|")[2]) == pytest.approx(0, abs=1e-4)


def test_a_reference_of_another_resize_is_taken_only_with_unlike(run, folder):
    flags = [f"--images={folder / 'samples'}", f"--reference={folder / 'ref.npz'}"]
    flags += ["--features=small", "--resize=tf1"]
    message = one_message(*run("evaluate", *flags))
    assert "ref.npz" not in message
    assert "the reference digits was made with small, weights " in message
    assert "resize bicubic, and the images are measured with small" in message
    assert "--features and --resize, or accept it with --unlike" in message
    code, stdout, stderr = run("evaluate", *flags, "--unlike")
    assert code == 0, stderr
    assert "reference made with small, weights " in stdout
    assert "the number is comparable with none" in stdout


def test_an_array_of_images_of_another_kind_is_one_message(run, folder):
    np.save(folder / "floats.npy", np.full((20, 8, 8, 3), np.nan, np.float32))
    np.savez(folder / "unit.npz", np.ones((20, 8, 8, 3), np.uint8))
    np.savez(folder / "few.npz", pictures(9))
    np.savez(folder / "plain.npz", mu=np.zeros(32), sigma=np.eye(32))
    good = {"images": folder / "samples", "reference": folder / "ref.npz", "features": "small"}
    for change, message in (
        ({"images": folder / "floats.npy"}, "holds float32 of shape (8, 8, 3) per image; expected"),
        ({"images": folder / "unit.npz"}, "has no value above 1; expected uint8 from 0 to 255"),
        ({"images": folder / "few.npz"}, "9 images are too few to measure; expected at least 10"),
        ({"images": folder / "none"}, "does not exist; expected a folder, .npz or .npy"),
        ({"images": None}, "give either --student, a finished run, or --images"),
        ({"student": folder}, "give either --student, a finished run, or --images"),
        ({"num": 5}, "--num has no meaning for --images; leave it out"),
        ({"student": folder, "images": None}, "--reference has no meaning for --student"),
        ({"reference": None}, "--reference is needed: a file of python -m distill_jax.reference"),
        ({"reference": folder / "plain.npz"}, "does not say how its images were resized"),
        ({"features": None}, "--images needs --features, one of inception, efflite0"),
        ({"reference": folder / "few.npz"}, "few.npz is no reference: it has arr_0, and no mu"),
    ):
        given = {name: value for name, value in {**good, **change}.items() if value is not None}
        result = run("evaluate", *(f"--{name}={value}" for name, value in given.items()))
        assert message in one_message(*result)


def test_a_mistake_in_a_reference_is_one_message(run, folder):
    good = {"config": "configs/digits_guided.py", "features": "small", "out": folder / "x.npz"}
    for change, message in (
        ({"out": None}, "--out is needed: the .npz file to write"),
        ({"out": folder / "x.npy"}, "does not end in .npz"),
        ({"features": None}, "--features is needed: one of inception, efflite0"),
        ({"config": None}, "say which images: --config, --student (a run's data), or --images"),
        ({"images": folder / "samples"}, "leave out --config and --student"),
        ({"config": "configs/mixture_sid.py"}, "expected uint8 from 0 to 255"),
    ):
        given = {name: value for name, value in {**good, **change}.items() if value is not None}
        result = run("reference", *(f"--{name}={value}" for name, value in given.items()))
        assert message in one_message(*result)
    assert not (folder / "x.npz").exists()


def test_weights_that_are_cut_short_are_one_message(run, folder, small_file, tmp_path):
    (tmp_path / "small.npz").write_bytes(small_file.read_bytes()[:-1000])
    flags = f"--images={folder / 'samples'}", "--features=small", f"--out={tmp_path / 'x.npz'}"
    message = one_message(*run("reference", *flags, folder=tmp_path))
    assert "small.npz cannot be read as .npz" in message
