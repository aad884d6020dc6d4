"""Tests of the codec of Stable Diffusion's autoencoders, on random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from distill_jax.data import DATASETS
from distill_jax.diffusion.spec import image_data
from distill_jax.models import vae
from distill_jax.models.pretrained import torch_state
from distill_jax.run.fits import codec_fit
from distill_jax.sampling import autoencoder
from distill_jax.sampling.autoencoder import Autoencoder
from distill_jax.sampling.codecs import load_codec
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from tests.models.diffusers import VAE, pixels, weights
from tests.models.test_diffusers import LAYERS, RECORDED, names_of, read

NAME = "diffusion_pytorch_model.safetensors"
CONFIG = {"_class_name": "AutoencoderKL", **VAE}
OLD = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def write(folder, name=NAME, config=CONFIG, old=False, dtype="float32"):
    """Writes the directory of an autoencoder with the recorded weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    state = {}
    for key, shape in json.loads(str(RECORDED["four_names"])).items():
        leaf = of_array(weights(key, tuple(shape)).astype(dtype))
        for now, then in OLD.items() if old else ():
            key = key.replace(f"mid_block.attentions.0.{now}.", f"mid_block.attentions.0.{then}.")
        state[key] = leaf
    safetensors.write(folder / name, state)
    return folder


def test_a_run_keeps_the_autoencoder_of_a_pipeline_in_its_codec(tmp_path):
    write(tmp_path / "pipeline" / "vae", old=True)
    options = {"name": "autoencoder", "path": str(tmp_path / "pipeline")}
    fit = codec_fit(options, epath.Path(tmp_path / "run"), DATASETS["noise"](size=16, count=16))
    assert fit.finish() and not fit.finish()
    (tmp_path / "pipeline").rename(tmp_path / "elsewhere")
    codec = load_codec(epath.Path(tmp_path / "run" / "codec" / "final"))
    assert codec.kind == Autoencoder("", 0, False, (8, 16, 16), 1, 4, 4, True, True, 0.18215, 0.0)
    kept = torch_state(codec.params)
    for key, shape in json.loads(str(RECORDED["four_names"])).items():
        given = weights(key, tuple(shape))
        np.testing.assert_array_equal(kept.pop(key).read(()), given, err_msg=key)
    assert not kept
    x = jnp.asarray(pixels((2, 4, 4), 4))
    z = codec.encode(x)
    mean = vae.encode(LAYERS["four"], read("four", vae.shapes(LAYERS["four"])), x).mean
    np.testing.assert_allclose(z, 0.18215 * mean, atol=1e-5)
    images = codec.decode(z)
    assert images.shape == x.shape
    assert float(jnp.abs(images).max()) <= 1


def test_latents_are_shifted_before_they_are_scaled_and_back():
    layers = LAYERS["sixteen"]
    params = read("sixteen", vae.shapes(layers))
    given = {"widths": layers.widths, "blocks": 2, "channels": 16, "groups": 4}
    codec = Autoencoder(**given, quant=False, post_quant=False, scale=1.5305, shift=0.0609)
    x = jnp.asarray(pixels((2, 8, 8), 2))
    mean, std = RECORDED["sixteen_mean_0"], RECORDED["sixteen_std_0"]
    z = codec.encode(params, x)
    np.testing.assert_allclose(z, (mean - 0.0609) * 1.5305, atol=1e-4)
    drawn = Autoencoder(**given, quant=False, post_quant=False)
    apart = (drawn.encode(params, x, jax.random.key(0)) / 0.18215 - mean) / std
    np.testing.assert_allclose((apart.mean(), apart.std()), (0, 1), atol=0.1)
    np.testing.assert_allclose(drawn.encode(params, x), 0.18215 * mean, atol=1e-4)


def test_a_batch_of_many_pixels_is_computed_part_by_part(monkeypatch):
    params = read("four", vae.shapes(LAYERS["four"]))
    codec = Autoencoder("", 0, False, (8, 16, 16), 1, 4, 4)
    x = jnp.asarray(pixels((5, 2, 2), 4))
    whole = codec.encode(params, x), codec.decode(params, codec.encode(params, x))
    monkeypatch.setattr(autoencoder, "PIXELS", 128)  # Two images.
    parts = codec.encode(params, x), codec.decode(params, whole[0])
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("sizes", [(8, 8), (8, 21), (17, 5)])
def test_tiles_cover_a_latent_with_weights_that_sum_to_one(monkeypatch, sizes):
    def doubled(module, params, z):
        assert max(z.shape[1:3]) <= 8
        return z.repeat(2, axis=1).repeat(2, axis=2)[..., :3]

    monkeypatch.setattr(vae, "_apply", doubled)
    z = jax.random.normal(jax.random.key(0), (2, *sizes, 4))
    found = vae.decode(vae.Layers((4, 4), groups=2), {}, z, tile=8)
    expected = z.repeat(2, axis=1).repeat(2, axis=2)[..., :3]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_tile_as_large_as_the_latent_changes_nothing():
    layers = LAYERS["four"]
    params = read("four", vae.shapes(layers))
    z = jax.random.normal(jax.random.key(0), (1, 8, 8, 4))
    whole, tiled = (vae.decode(layers, params, z, tile) for tile in (0, 8))
    np.testing.assert_array_equal(whole, tiled)


def test_weights_in_half_precision_are_read_as_they_are(tmp_path):
    fp16 = write(tmp_path / "vae", NAME.replace(".safe", ".fp16.safe"), dtype="float16")
    params = Autoencoder(str(fp16)).fit(np.zeros((0, 8, 8, 3)))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    kernel = weights("encoder.conv_in.weight", (8, 3, 3, 3)).astype("float16")
    np.testing.assert_array_equal(
        params["encoder"]["conv_in"]["kernel"], kernel.transpose(2, 3, 1, 0)
    )
    assert names_of(params).keys() == json.loads(str(RECORDED["four_names"])).keys()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"_class_name": "AutoencoderTiny"},
            "'AutoencoderTiny'; expected AutoencoderKL",
        ),
        ({"act_fn": "relu"}, "act_fn is 'relu'; only 'silu' is supported"),
        ({"block_out_channels": [8, 16]}, "down_block_types is .* expected 2 times"),
        ({"block_out_channels": "x"}, "block_out_channels is 'x'; expected a tuple"),
        ({"norm_num_groups": 3}, "widths is .* expected multiples of groups = 3"),
        ({"latent_channels": 5}, "conv_in.weight is of shape .* expected .3, 3, 5, 16."),
        ({"scaling_factor": 0}, "scaling_factor is 0; expected a number above 0"),
        ({"down_block_types": [{}, {}, {}]}, "down_block_types is "),
    ],
)
def test_another_network_is_one_message(tmp_path, change, message):
    folder = write(tmp_path / "vae", config={**CONFIG, **change})
    with pytest.raises(ValueError, match=message):
        Autoencoder(str(folder)).latents(image_data((16, 16, 3), 0))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (18, 16, 3),
            "images are 18x16x3; .* 3 channels and sides .* multiples of 4",
        ),
        ((16, 16, 1), "images are 16x16x1"),
    ],
)
def test_images_that_do_not_fit_are_one_message(tmp_path, shape, message):
    with pytest.raises(ValueError, match=message):
        Autoencoder(str(write(tmp_path / "vae"))).latents(image_data(shape, 0))


def test_a_directory_without_weights_or_config_is_one_message(tmp_path):
    folder = write(tmp_path / "vae")
    (folder / NAME).unlink()
    with pytest.raises(ValueError, match="has no weights; expected one of diffusion_pytorch_model"):
        Autoencoder(str(folder)).described()
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config.json"):
        Autoencoder(str(folder)).described()
    with pytest.raises(ValueError, match=r"codec.path is ''"):
        Autoencoder().fit(np.zeros((0, 8, 8, 3)))


def test_weights_that_are_not_finite_are_one_message(tmp_path):
    folder = write(tmp_path / "vae")
    state = safetensors.read(folder / NAME)
    arrays = {key: np.array(leaf.read(())) for key, leaf in state.items()}
    arrays["decoder.conv_in.bias"][0] = np.nan
    safetensors.write(folder / NAME, {key: of_array(array) for key, array in arrays.items()})
    with pytest.raises(ValueError, match="decoder.conv_in.bias has values that are not finite"):
        Autoencoder(str(folder)).fit(np.zeros((0, 8, 8, 3)))
