"""Tests of the tiny autoencoders, on random weights and, where it is, on TAEF2."""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from etils import epath

from distill_jax.data import DATASETS
from distill_jax.diffusion.spec import image_data
from distill_jax.models import taesd
from distill_jax.run.fits import codec_fit
from distill_jax.sampling.codecs import Taesd, load_codec
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from tests.models import pretrained
from tests.models.pretrained.directories import RECORDED

ROOT = pathlib.Path(__file__).parent.parent.parent
SHARED = pathlib.Path(os.environ.get("DISTILL_JAX_SHARED", ROOT.parent / "shared")) / "data"
TAEF2, EMOJI = SHARED / "taef2", SHARED / "emoji64"
LAYERS = {"encoder": "cbdbbbdbbbdpppc", "decoder": "cpppdbbbdbbbdbc", "channels": 32, "width": 64}
SIZES = {"encoder": "cbdpc", "decoder": "cpdbc", "channels": 4, "width": 8}


def write(directory, prefix="", **changes):
    """Writes random weights with the names of PyTorch, and returns them in our layout."""
    rng = np.random.default_rng(0)
    directory.mkdir(exist_ok=True)
    params = {}
    for name, layers in taesd.shapes(**{**SIZES, **changes}).items():
        state, params[name] = {}, {}
        for number, layer in layers.items():
            arrays = {
                key: 0.2 * rng.normal(size=leaf.shape).astype(np.float32)
                for key, leaf in layer.items()
            }
            params[name][number] = arrays
            for key, leaf in arrays.items():
                turned = leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf
                state[f"{prefix}{2 * int(number)}.{key}"] = of_array(np.ascontiguousarray(turned))
        safetensors.write(directory / f"taesd_{name}.safetensors", state)
    return params


@pytest.mark.parametrize("prefix", ["", "layers.", "encoder.layers."])
def test_files_are_read_in_our_layout(tmp_path, prefix):
    written = write(tmp_path / "vae", prefix)
    found = taesd.read(tmp_path / "vae")
    jax.tree.map(np.testing.assert_array_equal, found, written)
    assert taesd.describe(found) == SIZES


def test_latents_and_images_have_their_sizes(tmp_path):
    params = jax.tree.map(jnp.asarray, write(tmp_path / "vae"))
    x = jnp.asarray(np.random.default_rng(1).random((2, 8, 8, 3)), jnp.float32)
    z = taesd.encode(params["encoder"], x)
    assert z.shape == (2, 4, 4, 4)
    assert taesd.decode(params["decoder"], z).shape == x.shape


def test_a_run_keeps_the_weights_in_its_codec(tmp_path):
    write(tmp_path / "vae")

    options = {"name": "taesd", "path": str(tmp_path / "vae")}
    fit = codec_fit(options, epath.Path(tmp_path / "run"), DATASETS["noise"](size=8, count=16))
    assert fit.finish() and not fit.finish()
    (tmp_path / "vae").rename(tmp_path / "elsewhere")
    codec = load_codec(epath.Path(tmp_path / "run" / "codec" / "final"))
    assert codec.kind == Taesd(**SIZES)
    assert codec.encode(jnp.zeros((3, 8, 8, 3))).shape == (3, 4, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: (d / "taesd_decoder.safetensors").unlink(), "has no .decoder. file"),
        (lambda d: write(d, encoder="cpc"), "do not fit each other|cannot be read"),
        (lambda d: (d / "taesd_encoder.safetensors").write_bytes(b"x" * 100), "cannot be read"),
        (lambda d: write(d, prefix="down."), "is no weight of a network of the TAESD family"),
    ],
)
def test_other_files_are_refused(tmp_path, change, message):
    write(tmp_path)
    change(tmp_path)
    if message.startswith("do not fit"):
        assert taesd.factor(taesd.describe(taesd.read(tmp_path))["encoder"]) == 1
        return
    with pytest.raises(ValueError, match=message):
        taesd.read(tmp_path)


@pytest.mark.parametrize("shape", [(8, 7, 3), (8, 8, 1)])
def test_images_that_do_not_fit_are_refused(shape):
    with pytest.raises(ValueError, match="3 channels and sides that are multiples of 2"):
        Taesd(**SIZES).latents(image_data(shape, 0))


@pytest.mark.parametrize("name", ["encoder", "decoder", "channels", "width"])
def test_a_codec_with_neither_path_nor_layers_is_refused(name):
    part = Taesd(**{**SIZES, name: type(SIZES[name])()})
    with pytest.raises(ValueError, match=f"codec.path is '' and codec.{name} (0|''); expected"):
        part.latents(image_data((8, 8, 3), 0))


def near(params, name):
    """Checks latents and images against those of PyTorch, see pretrained/make.py."""
    x = jnp.asarray(pretrained.picture(16, 24)[None], jnp.float32) / 255
    with jax.default_matmul_precision("highest"):
        z = jax.jit(taesd.encode)(params["encoder"], x)
        y = jax.jit(taesd.decode)(params["decoder"], jnp.asarray(pretrained.latents()))
    for found, kind in ((z, "latents"), (y[:, ::3, ::3], "images")):
        expected = RECORDED[f"{name}_{kind}"]
        np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_the_layers_of_taef2_are_those_of_pytorch(tmp_path):
    for part in ("encoder", "decoder"):
        shapes = json.loads(str(RECORDED[f"tiny_{part}_names"]))
        state = {key: pretrained.weights(key, tuple(shape)) for key, shape in shapes.items()}
        arrays = {key: of_array(leaf) for key, leaf in state.items()}
        safetensors.write(tmp_path / f"{part}.safetensors", arrays)
    found = taesd.read(tmp_path)
    assert taesd.describe(found) == LAYERS
    near(jax.tree.map(jnp.asarray, found), "random")


@pytest.mark.skipif(not TAEF2.exists(), reason="TAEF2 is not here")
def test_taef2_is_that_of_pytorch():
    near(jax.tree.map(jnp.asarray, taesd.read(TAEF2)), "taef2")


@pytest.mark.skipif(not TAEF2.exists() or not EMOJI.exists(), reason="TAEF2 is not here")
def test_taef2_restores_emoji():
    params = jax.tree.map(jnp.asarray, taesd.read(TAEF2))
    assert taesd.describe(params) == LAYERS
    files = sorted(EMOJI.rglob("*.png"))
    files = files[:: len(files) // 64][:64]
    x = np.stack([np.asarray(PIL.Image.open(file).convert("RGB")) for file in files])
    x = x.astype(np.float32) / 255
    z = jax.jit(taesd.encode)(params["encoder"], x)
    y = np.clip(jax.jit(taesd.decode)(params["decoder"], z), 0, 1)
    psnr = 10 * np.log10(1 / np.mean((x - y) ** 2, axis=(1, 2, 3)))
    assert np.median(psnr) >= 28
    assert abs(float(z.mean()) - 0.05) < 0.05
    assert abs(float(z.std()) - 0.85) < 0.05
