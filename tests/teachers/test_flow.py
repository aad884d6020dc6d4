"""Tests of the reader of SD3's pipelines, on small ones with random weights."""

import json

import jax
import numpy as np
import pytest

from distill_jax.models.mmdit_files import BUFFER
from distill_jax.models.pretrained import torch_state
from distill_jax.sampling.loading import load
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from distill_jax.teachers import TEACHERS, importing
from tests.models.diffusers import MMDITS, TEXT, VAES, mmdit_weights
from tests.models.test_mmdit import RECORDED

NAME = "diffusion_pytorch_model.safetensors"
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 16}
TEXTS = {
    "text_encoder": {"hidden_size": 4, "projection_dim": 4, "max_position_embeddings": 77},
    "text_encoder_2": {"hidden_size": 6, "projection_dim": 6},
    "text_encoder_3": {"d_model": TEXT},
}
TABLE = np.zeros((1, 144, 16), np.float32)
read = TEACHERS["diffusers"]


def state_of(name, dtype="float32"):
    """Returns the recorded weights of a network, with its table of positions."""
    names = json.loads(str(RECORDED[f"{name}_names"]))
    state = {key: mmdit_weights(key, tuple(shape)).astype(dtype) for key, shape in names.items()}
    places = MMDITS[name]["pos_embed_max_size"]
    state[BUFFER] = TABLE[:, : places**2].astype(dtype)
    return {key: of_array(value) for key, value in state.items()}


def write(folder, name="sd35", dtype="float32", state=None, **changes):
    """Writes a pipeline with the recorded weights of a network; changes of its config.json.

    Other changes are by the name of the folder; None leaves a folder out.
    """
    parts = {"scheduler": SCHEDULER, "vae": {"_class_name": "AutoencoderKL", **VAES["four"]}}
    parts |= {part: changes.pop(part) for part in (*TEXTS, *parts) if part in changes}
    kind = {"_class_name": "SD3Transformer2DModel", **MMDITS[name], **changes}
    for part, content in {**TEXTS, **parts, "transformer": kind}.items():
        if content is not None:
            end = "scheduler_config" if part == "scheduler" else "config"
            (folder / part).mkdir(parents=True, exist_ok=True)
            (folder / part / f"{end}.json").write_text(json.dumps(content))
    safetensors.write(folder / "transformer" / NAME, {**state_of(name, dtype), **(state or {})})
    return folder


@pytest.mark.parametrize("name", MMDITS)
def test_a_pipeline_becomes_a_teacher_with_a_text_and_a_pooled_text(tmp_path, name):
    imported = read(write(tmp_path / "sd3", name), None, {"length": 5, "resolutions": [4, 8]})
    assert imported.schedule == {"name": "rectified_flow", "shift": 3.0}
    assert (imported.parameterization, imported.label_dropout) == ("flow", 0.1)
    assert (imported.data.x.shape, imported.data.bounded) == ((8, 8, 4), False)
    shapes = {key: leaf.shape for key, leaf in imported.data.cond}
    assert shapes == {"text": (82, TEXT), "text_mask": (82,), "pooled": (10,)}
    assert imported.trained.guidance.null
    assert imported.trained.resolutions == (4, 8)


def test_a_pipeline_may_say_that_it_has_no_t5(tmp_path):
    folder = write(tmp_path / "sd3", text_encoder_3=None)
    (folder / "model_index.json").write_text('{"text_encoder_3": [null, null]}')
    assert dict(read(folder).data.cond)["text"].shape == (77 + 256, TEXT)


def test_an_imported_network_keeps_every_array_and_its_dtype(tmp_path):
    folder = write(tmp_path / "sd3", dtype="bfloat16")
    student = load(importing.convert("diffusers", folder, tmp_path / "x"))
    expected = state_of("sd35", "bfloat16")
    del expected[BUFFER]
    found = torch_state(student.params)
    assert found.keys() == expected.keys()
    assert {leaf.dtype.name for leaf in jax.tree.leaves(student.params)} == {"bfloat16"}
    for key, leaf in expected.items():
        np.testing.assert_array_equal(found[key].read(()), leaf.read(()), err_msg=key)


@pytest.mark.parametrize(("side", "shift"), [(4, np.exp(0.5)), (8, np.exp(1.15))])
def test_a_dynamic_shift_is_that_of_the_number_of_patches(tmp_path, side, shift):
    scheduler = {**SCHEDULER, **DYNAMIC}
    imported = read(write(tmp_path / "sd3", scheduler=scheduler, sample_size=side))
    assert imported.schedule["shift"] == pytest.approx(shift)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scheduler": {"_class_name": SCHEDULER["_class_name"]}}, "has no shift; expected one"),
        ({"scheduler": {"_class_name": "DDIMScheduler"}}, "'DDIMScheduler'; expected one of 'Flow"),
        ({"scheduler": {**SCHEDULER, "shift": 0}}, "shift is 0; expected a number from 0.001"),
        ({"scheduler": {**SCHEDULER, "use_karras_sigmas": True}}, "only False is supported"),
        (
            {"scheduler": {**SCHEDULER, **DYNAMIC, "max_image_seq_len": 4}},
            "base_image_seq_len is 4 and max_image_seq_len 4; expected the second to be larger",
        ),
        ({"text_encoder_3": None}, "has no text_encoder_3/; expected a whole pipeline .*T5 too"),
        ({"text_encoder_2": {}}, "projection_dim is None; expected a whole number"),
        ({"text_encoder_3": {"d_model": 13}}, "10 and 13 of tokens; the transformer takes 10 and"),
        ({"vae": {**VAES["four"], "latent_channels": 16}}, "is 16; the transformer takes 4"),
        ({"sample_size": 7}, "latents of 7x7; expected multiples of patch_size = 2"),
        ({"sample_size": 32}, "the latent is 32x32; the table of positions has 12 patches of 2"),
        ({"dual_attention_layers": [1]}, "expected the first blocks, 0, 1"),
        ({"num_layers": 5}, "has no transformer_blocks.4.*: it is of another network"),
        ({"state": {BUFFER: of_array(TABLE[:, :9])}}, r"\(1, 9, 16\); expected \(1, 144, 16\)"),
        ({"state": {"x": of_array(TABLE)}}, "has the array 'x', which the network .* lacks"),
    ],
)
def test_a_pipeline_that_is_not_supported_is_one_message(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path / "sd3", **changes))


def test_other_wrong_arguments_are_one_message(tmp_path):
    folder = write(tmp_path / "sd3")
    with pytest.raises(ValueError, match="length is 0; expected a whole number from 1 to 4,096"):
        read(folder, None, {"length": 0})
    with pytest.raises(ValueError, match="latents of 5x5; expected multiples of patch_size = 2"):
        read(folder, None, {"resolutions": [5, 8]})
    with pytest.raises(ValueError, match="leave --config out"):
        read(folder, {})
    (folder / "distill_jax.json").write_text('{"times": [1.0, 0.5], "resolutions": [8]}')
    with pytest.raises(ValueError, match="1 resolutions; expected one for each of times"):
        read(folder)
    (folder / "distill_jax.json").write_text('{"times": [0.5, 1.0]}')
    with pytest.raises(ValueError, match=r"times is \[0.5, 1.0\]; expected .* that fall"):
        read(folder)
    (folder / "distill_jax.json").unlink()
    (folder / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(ValueError, match="scheduler_config.json does not exist"):
        read(folder)
    with pytest.raises(ValueError, match="does not exist; .*gated"):
        read(tmp_path / "stable-diffusion-3.5-medium")
