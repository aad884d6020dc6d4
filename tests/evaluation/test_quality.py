"""Scores of images say what they were measured with, and behave as distances must."""

import ast
import dataclasses
import io
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image, ImageFilter

from distill_jax.evaluation.feature_networks import load_network
from distill_jax.evaluation.quality import measure
from distill_jax.evaluation.references import make_reference, read_reference
from distill_jax.metrics.frechet import Moments, frechet_distance, moments
from distill_jax.runtime.sharding import make_layout
from tests.toys import ROOT

RNG = np.random.default_rng(0)


def moments_of(count, size=6):
    mu, sigma = moments(RNG.normal(size=(count, size)))
    return {"mu": mu, "sigma": sigma}


def pictures(num, colours=3, seed=0):
    """Returns random coloured discs on grey, uint8 (num, 24, 24, 3)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:24, :24]
    centre, radius = rng.uniform(6, 18, (2, num, 1, 1)), rng.uniform(3, 8, (num, 1, 1))
    disc = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2)[..., None]
    colour = (60 + 65 * np.eye(3)[rng.integers(0, colours, num)])[:, None, None]
    noise = rng.normal(scale=4, size=(num, 24, 24, 3))
    return np.clip(np.where(disc, 2 * colour, 90) + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def network(small_file):
    return load_network("small", small_file)


@pytest.fixture(scope="module")
def reference(network):
    return make_reference("discs", "train", [pictures(128)], network)


@pytest.fixture(scope="module")
def scores(network, reference):
    return measure([pictures(64, seed=1)], network, reference, {"w": 2.0, "seed": 7})


def test_scores_of_another_network_are_never_called_fid(scores):
    names = {"FD-small", "MIND-small", "KID-small"}
    assert set(scores) == {*names, "precision", "recall", "density", "coverage"}


def test_a_score_says_everything_that_it_depends_on(scores, network, reference):
    protocol = scores["KID-small"].protocol
    for part in (
        f"features small@{network.digest[:8]}, resize bicubic, images uint8",
        f"reference discs@{reference.fingerprint}, split train, reference images 128, n 64",
        "w 2.0, seed 7",
        "subsets of 64",
    ):
        assert part in protocol


def test_few_images_are_warned_about(scores):
    assert "64 images are few for 32 features" in scores["FD-small"].remark
    assert scores["MIND-small"].remark == ""


def test_standard_errors_are_of_the_size_of_the_scatter(network, reference, scores):
    for name in ("MIND-small", "precision"):
        again = [
            measure([pictures(64, seed=seed)], network, reference)[name].value for seed in (2, 3, 4)
        ]
        scatter = np.std([*again, scores[name].value], ddof=1)
        assert scatter / 6 < scores[name].error < 6 * scatter


@pytest.mark.parametrize("name", ["FD-small", "MIND-small"])
def test_distances_grow_with_blur_and_with_lost_modes(network, reference, name):
    def blurred(radius):
        images = [Image.fromarray(x).filter(ImageFilter.GaussianBlur(radius)) for x in real]
        return np.stack([np.asarray(image) for image in images])

    real = pictures(64, seed=5)
    batches = real, blurred(0.5), blurred(2.0)
    found = [measure([x], network, reference)[name].value for x in batches]
    assert found == sorted(found)
    lost = measure([pictures(64, colours=1, seed=5)], network, reference)
    assert lost[name].value > 1.2 * found[0]
    assert lost["recall"].value < 0.8 * measure([real], network, reference)["recall"].value


def test_the_distance_of_a_reference_to_its_own_images_is_zero(network, reference):
    found = measure([pictures(128)], network, reference, infinity=True)
    assert found["FD-small"].value == pytest.approx(0, abs=1e-4)
    assert found["precision"].value == found["coverage"].value == 1
    assert "extrapolated from 128 images" in found["FD-small-infinity"].remark


def test_too_few_images_are_refused(network, reference):
    with pytest.raises(ValueError, match="9 images are too few to measure; expected at least 10"):
        measure([pictures(9)], network, reference)
    with pytest.raises(ValueError, match="discs has 1 image in test; a reference needs two"):
        make_reference("discs", "test", [pictures(1)], network)


def test_a_reference_is_read_as_it_was_saved(tmp_path, network, reference):
    reference.save(tmp_path / "discs.npz")
    found, remark = read_reference(tmp_path / "discs.npz", network)
    assert remark == ""
    assert found.fingerprint == reference.fingerprint
    np.testing.assert_array_equal(found.features, reference.features)
    assert (found.name, found.split, found.num) == ("discs", "train", 128)


def test_a_reference_of_another_protocol_is_refused(small_file, reference):
    other = load_network("small", small_file, method="tf1")
    with pytest.raises(ValueError, match="resize bicubic, and the images are measured .* tf1"):
        measure([pictures(20)], other, reference)
    for score in measure([pictures(20)], other, reference, unlike=True).values():
        assert "comparable with none" in score.remark
        assert "resize tf1, images uint8, reference discs@" in score.protocol
        assert f"reference made with {reference.made_with}" in score.protocol
    narrow = dataclasses.replace(reference, moments=Moments(*moments_of(20).values()))
    with pytest.raises(ValueError, match="discs has 6 features, and small has 32"):
        measure([pictures(20)], other, narrow, unlike=True)


def test_a_reference_without_protocol_has_to_be_told_its_resize(tmp_path, network):
    np.savez(tmp_path / "cifar10-32x32.npz", **moments_of(50))
    with pytest.raises(ValueError, match="does not say how its images were resized; .* tf1 for"):
        read_reference(tmp_path / "cifar10-32x32.npz", network)
    found, _ = read_reference(tmp_path / "cifar10-32x32.npz", network, "bicubic")
    assert (found.network, found.resize, found.digest) == ("inception", "bicubic", "")
    with pytest.raises(ValueError, match="unknown resize 'cubic'"):
        read_reference(tmp_path / "cifar10-32x32.npz", network, "cubic")


def test_the_stored_moments_of_adm_are_compared_with_its_images(tmp_path, network):
    spatial = {f"{name}_s": value for name, value in moments_of(50, 4).items()}
    own = network([pictures(30)])["pooled"]
    mu, sigma = moments(own + 0.1)
    np.savez(tmp_path / "VIRTUAL.npz", arr_0=pictures(30), mu=mu, sigma=sigma, **spatial)
    found, remark = read_reference(tmp_path / "VIRTUAL.npz", network)
    assert (found.network, found.resize) == ("inception", "tf1")
    assert found.spatial.mean.shape == (4,)
    apart = frechet_distance(moments(own), found.moments)
    assert f"the FID of its own 30 images to its stored moments is {apart:.2f}" in remark


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": np.zeros(3)}, "no reference: it has images, and no mu and sigma"),
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, r"mu is of shape \(3,\) and sigma of \(4, 4\)"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "moments are not finite"),
        ({"mu": np.zeros(2), "sigma": np.asarray([[1, 2], [0, 1]])}, "sigma is not symmetric"),
        ({**moments_of(20), "digest": ""}, "is damaged .*make the reference again"),
        ({"mu": np.asarray([None]), "sigma": np.eye(1)}, "cannot be read as .npz .*pickle"),
    ],
)
def test_other_files_are_refused(tmp_path, network, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        read_reference(tmp_path / "x.npz", network)


def test_a_damaged_file_is_refused(tmp_path, network):
    buffer = io.BytesIO()
    np.savez(buffer, **moments_of(20))
    (tmp_path / "cut.npz").write_bytes(buffer.getvalue()[:-200])
    with pytest.raises(ValueError, match="cannot be read as .npz"):
        read_reference(tmp_path / "cut.npz", network)


def values_of(file, devices, sizes):
    """Returns the scores of 200 images on so many devices, in batches of these sizes."""
    network = load_network("small", file, layout=make_layout({"data": -1}, jax.devices()[:devices]))
    real, x = pictures(200), pictures(200, seed=1)
    cuts = np.cumsum(sizes)
    reference = make_reference("discs", "train", np.split(real, cuts), network)
    found = measure(np.split(x, cuts), network, reference, infinity=True)
    return {name: score.value for name, score in found.items()}


def test_scores_are_those_of_one_device_and_one_batch_on_eight_and_in_others(small_file):
    code = (
        "import jax, sys; jax.config.update('jax_num_cpu_devices', 8); "
        "from tests.evaluation import test_quality; from tests.evaluation.small import SMALL; "
        "from distill_jax.evaluation.feature_networks import KINDS; KINDS['small'] = SMALL; "
        "print(len(jax.devices()), test_quality.values_of(sys.argv[1], 8, [3, 70, 64]))"
    )
    command = [sys.executable, "-c", code, str(small_file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    count, _, found = done.stdout.partition(" ")
    assert count == "8"
    assert ast.literal_eval(found) == pytest.approx(values_of(small_file, 1, [200]), rel=1e-4)
