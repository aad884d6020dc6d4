"""Distances in the features of DINOv2 and CLIP, which are read from a directory."""

import hashlib

import jax
import numpy as np
import pytest
from PIL import Image

from distill_jax.evaluation import feature_networks
from distill_jax.evaluation.feature_networks import NAMES, find, load_network
from distill_jax.evaluation.quality import measure
from distill_jax.evaluation.references import make_reference
from distill_jax.metrics.kernel import cmmd
from distill_jax.models import dinov2
from distill_jax.models.dinov2 import read_dinov2
from tests.models.pretrained import DINOV2, IMAGE
from tests.models.pretrained.directories import write

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (24, 30, 40, 3)).astype(np.uint8)
SIDE = 70


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = {**DINOV2, "model_type": "dinov2"}
    return write(tmp_path_factory.mktemp("dinov2"), config, "dinov2_mlp_names")


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    config = {"vision_config": IMAGE, "projection_dim": 10}
    return write(tmp_path_factory.mktemp("clip"), config, "image_names")


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr(feature_networks, "BATCH", 8)
    kinds = feature_networks.KINDS
    monkeypatch.setitem(kinds, "dinov2", kinds["dinov2"]._replace(side=SIDE))


def shown(x, side, mean, std):
    """Returns images that Pillow resizes as bytes, normalised."""
    resized = [Image.fromarray(each).resize((side, side), Image.Resampling.BICUBIC) for each in x]
    return (np.stack(resized).astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)


def test_the_features_of_dinov2_are_those_of_pillows_resize_and_imagenets_pixels(folder):
    network = load_network(f"dinov2:{folder}")
    module, variables, file = read_dinov2(folder)
    with jax.default_matmul_precision("highest"):
        pixels = jax.numpy.asarray(shown(X, SIDE, dinov2.MEAN, dinov2.STD))
        expected = jax.jit(module.apply)(variables, pixels)
    # A pixel may be a level off.
    np.testing.assert_allclose(network([X])["pooled"], expected, atol=5e-3)
    assert network.digest == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (network.name, network.resize, network.is_fid) == ("dinov2", "bicubic8", False)


@pytest.mark.parametrize(
    ("width", "name"), [(1024, "FD-DINOv2"), (384, "FD-DINOv2-S"), (16, "FD-DINOv2-16")]
)
def test_only_the_large_dinov2_has_the_plain_name(folder, monkeypatch, width, name):
    monkeypatch.setitem(dinov2.NAMES, 16, dinov2.NAMES.get(width, "DINOv2-16"))
    assert load_network(f"dinov2:{folder}").distance == name


def test_measures_in_clip_have_cmmd_of_the_central_square(clip_folder):
    network = load_network(f"clip:{clip_folder}")
    reference = make_reference("photos", "train", [X], network)
    fake = RNG.integers(0, 100, X.shape).astype(np.uint8)
    scores = measure([fake], network, reference)
    label = "CLIP-16-7-21"
    assert {f"FD-{label}", f"MIND-{label}", f"CMMD-{label}"} < scores.keys()
    assert not {"FID", "IS", "CMMD"} & scores.keys()
    unit = [
        found / np.linalg.norm(found, axis=1, keepdims=True)
        for found in (network([x[:, :, 5:35]])["pooled"] for x in (X, fake))
    ]
    score = scores[f"CMMD-{label}"]
    assert score.value == pytest.approx(cmmd(*unit), rel=1e-6)
    assert "reference features 24, sigma 10, x 1000" in score.protocol
    assert f"features clip@{network.digest[:8]}, resize bicubic8" in score.protocol


def test_directories_are_looked_for_where_users_have_them(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_JAX_FEATURES", str(tmp_path / "mine"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    with pytest.raises(FileNotFoundError, match="download facebook/dinov2-large from Hugging Face"):
        find("dinov2")
    hub = tmp_path / "huggingface" / "hub" / "models--facebook--dinov2-large" / "snapshots" / "1a"
    for folder in (hub, tmp_path / "mine" / "facebook" / "dinov2-large"):
        folder.mkdir(parents=True)
        assert str(find("dinov2")) == str(folder)
    assert str(find("dinov2:~/here")).endswith("/here")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("inception:here", "inception:here names a directory; expected one of inception"),
        ("dinov2:/nowhere", "/nowhere has no config.json; expected the directory of a network"),
        ("dinov2:", None),
    ],
)
def test_other_names_are_refused(name, message):
    assert not NAMES.allows(name) or message
    if message:
        with pytest.raises(ValueError, match=message):
            load_network(name)


def test_the_rule_of_a_config_knows_the_names():
    assert all(map(NAMES.allows, ("", "inception", "dinov2", "clip:/data/clip")))
    assert not any(map(NAMES.allows, ("inception:x", "nothing", "nothing:x", 3, ":")))
