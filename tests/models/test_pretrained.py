"""CLIP and DINOv2 compute what PyTorch's originals compute, see pretrained/make.py."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.resize import cubic_matrix
from distill_jax.models import dinov2
from distill_jax.models.clip import ClipText, TextOptions
from distill_jax.models.clip_files import read_clip
from distill_jax.models.dinov2 import Dinov2, Options, read_dinov2
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from tests.models import pretrained
from tests.models.pretrained import DINOV2, IMAGE, MASK, NEW, OLD, OPEN_CLIP, weights
from tests.models.pretrained.directories import RECORDED, write
from tests.teachers import pickles

IDS = jnp.asarray(pretrained.IDS)


def images(height, width):
    return jnp.asarray(pretrained.images(height, width))


def run(module, variables, *inputs):
    return jax.jit(module.apply)(variables, *inputs)


def near(found, name):
    expected = RECORDED[name]
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max(), rtol=1e-4)


@pytest.fixture(scope="module", autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize(("name", "options"), [("old", OLD), ("new", NEW)])
def test_the_text_tower_is_that_of_pytorch(tmp_path, name, options):
    config = {**options, "projection_dim": 10}
    module, variables = read_clip(write(tmp_path, config, "text_names")).text()
    found = run(module, variables, IDS)
    for part in ("last", "penultimate", "embeds"):
        near(getattr(found, part), f"{name}_{part}")


def test_the_pooled_token_of_an_old_config_is_that_of_the_largest_number():
    old, new = (ClipText(TextOptions(**options), False) for options in (OLD, NEW))
    variables = old.init(jax.random.key(0), IDS)
    old_found, new_found = (run(module, variables, IDS) for module in (old, new))
    np.testing.assert_array_equal(old_found.pooled, old_found.last[np.arange(3), [3, 4, 11]])
    np.testing.assert_array_equal(new_found.pooled, new_found.last[np.arange(3), [5, 3, 11]])


def test_a_text_tower_alone_reads_masks_as_pytorch_does(tmp_path):
    module, variables = read_clip(write(tmp_path, NEW, "masked_names")).text()
    found = run(module, variables, IDS, jnp.asarray(MASK))
    near(found.last, "masked_last")
    near(found.pooled, "masked_pooled")
    assert found.embeds is None


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_the_image_tower_is_that_of_pytorch(tmp_path, activation):
    config = {"vision_config": {**IMAGE, "hidden_act": activation}, "projection_dim": 10}
    module, variables = read_clip(write(tmp_path, config, "image_names")).image()
    near(run(module, variables, images(21, 21)), f"image_{activation}")


@pytest.mark.parametrize(("name", "quick"), [("exact", False), ("quick", True)])
def test_checkpoints_of_open_clip_are_read_under_their_own_names(tmp_path, name, quick):
    config = {"model_cfg": {**OPEN_CLIP, "quick_gelu": quick}, "preprocess_cfg": {}}
    file, json_file = "open_clip_model.safetensors", "open_clip_config.json"
    clip = read_clip(write(tmp_path, config, "open_clip_names", file, config_name=json_file))
    (image, variables), (text, of_text) = clip.image(), clip.text()
    near(run(image, variables, images(21, 21)), f"open_clip_{name}_image")
    near(run(text, of_text, IDS).embeds, f"open_clip_{name}_text")
    assert clip.state["logit_scale"].shape == ()


def test_files_of_pytorch_are_read_with_and_without_a_state_dict_inside(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(NEW))
    shapes = json.loads(str(RECORDED["masked_names"]))
    state = {key: weights(key, tuple(shape)) for key, shape in shapes.items()}
    entries, tensors = {}, {}
    for number, (key, x) in enumerate(state.items()):
        entries[f"data/{number}"] = x.tobytes()
        storage = pickles.Stored("storage", pickles.FLOAT, str(number), "cpu", x.size)
        tensors[key] = pickles.tensor(storage, x.shape)
    for content in (tensors, {"epoch": 3, "state_dict": tensors}):
        whole = {"data.pkl": pickles.dump(content), **entries}
        pickles.archive(tmp_path, whole).rename(tmp_path / "pytorch_model.bin")
        module, variables = read_clip(tmp_path).text()
        near(run(module, variables, IDS, jnp.asarray(MASK)).pooled, "masked_pooled")


@pytest.mark.parametrize("mlp", ["mlp", "swiglu"])
@pytest.mark.parametrize("shape", [(70, 70), (42, 56)])
def test_dinov2_is_that_of_pytorch_at_every_size(tmp_path, monkeypatch, mlp, shape):
    monkeypatch.setattr(dinov2, "HUB_OFFSET", 0.0)
    config = {**DINOV2, "model_type": "dinov2", "use_swiglu_ffn": mlp == "swiglu"}
    module, variables, _ = read_dinov2(write(tmp_path, config, f"dinov2_{mlp}_names"))
    near(run(module, variables, images(*shape)), f"dinov2_{mlp}_{shape[0]}")


def test_position_embeddings_are_resized_as_in_torch_hub():
    matrix = cubic_matrix(37, 16, 37 / 16.1)
    grid = weights("grid", (1, 2, 37, 37))[0]
    near(np.einsum("ih,chw,jw->cij", matrix, grid, matrix), "hub_grid")
    other = Options(**DINOV2, offset=dinov2.HUB_OFFSET)
    x, variables = images(42, 56), Dinov2(other).init(jax.random.key(0), images(70, 70))
    found, shifted = (run(Dinov2(o), variables, x) for o in (Options(**DINOV2), other))
    assert 1e-5 < float(jnp.abs(found - shifted).max()) < 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 0}, "config.json: hidden_size is 0; expected a whole number from 1"),
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000; expected a whole number"),
        ({"num_attention_heads": 3}, "hidden_size 16 must be divisible by num_attention_heads = 3"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'; expected one of quick_gelu, gelu"),
        ({"layer_norm_eps": None}, "layer_norm_eps is None; expected a number"),
        ({"image_size": 6}, "image_size 6 must be at least patch_size = 7"),
        ({"patch_size": 500}, "patch_size is 500; expected a whole number from 1 to 64"),
        ({"image_size": 84}, "position_embeddings is of shape .*expected .1, 145, 16."),
        ({"use_swiglu_ffn": True}, "has no encoder.layer.0.mlp.weights_in.* another network"),
        ({"model_type": "dinov2_with_registers"}, "model_type 'dinov2_with_registers'; expected"),
    ],
)
def test_a_directory_that_does_not_fit_is_refused(tmp_path, change, message):
    write(tmp_path, {**DINOV2, "model_type": "dinov2", **change}, "dinov2_mlp_names")
    with pytest.raises(ValueError, match=message):
        read_dinov2(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"text_config": 3}, "text_config is 3; expected an object"),
        ({"text_config": {**OLD, "vocab_size": -1}}, "text_config: vocab_size is -1; expected"),
        ({"text_config": OLD, "projection_dim": 11}, "text_projection.weight is of shape"),
        ({"model_cfg": {"embed_dim": 4}}, "does not describe a CLIP of two transformers"),
        (
            {"model_cfg": {**OPEN_CLIP, "vision_cfg": {"head_width": 0, "width": 4}}},
            "does not describe a CLIP of two transformers",
        ),
    ],
)
def test_a_clip_that_does_not_fit_is_refused(tmp_path, config, message):
    write(tmp_path, {"projection_dim": 10, **config}, "text_names")
    with pytest.raises(ValueError, match=message):
        read_clip(tmp_path).text()


def test_missing_files_and_values_that_are_not_finite_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no config.json or open_clip_config.json; expected"):
        read_clip(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="has no weights; expected one of model.safetensors, "):
        read_clip(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"half a file")
    with pytest.raises(ValueError, match="is cut short, damaged, or not a state dict"):
        read_clip(tmp_path)
    write(tmp_path, OLD, "masked_names")
    state = dict(safetensors.read(tmp_path / "model.safetensors"))
    name = "embeddings.position_embedding.weight"
    name = next(key for key in state if key.endswith(name))
    state[name] = of_array(np.full(state[name].shape, np.nan, np.float32))
    safetensors.write(tmp_path / "model.safetensors", state)
    with pytest.raises(ValueError, match="position_embedding.weight is of shape .*not finite"):
        read_clip(tmp_path).text()


def test_pixels_are_normalised_as_the_directory_says(tmp_path):
    write(tmp_path, NEW, "masked_names")
    assert read_clip(tmp_path).mean == pytest.approx((0.4815, 0.4578, 0.4082), abs=1e-4)
    place = tmp_path / "preprocessor_config.json"
    place.write_text('{"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 1]}')
    assert read_clip(tmp_path).std == (0.25, 0.5, 1.0)
    place.write_text('{"image_std": [0, 0.5, 1]}')
    with pytest.raises(ValueError, match="image_std is .*; expected 3 numbers from 0 to 1"):
        read_clip(tmp_path)
