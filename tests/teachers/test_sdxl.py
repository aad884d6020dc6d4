"""Tests of the reader of SDXL's pipelines, on small ones with random weights."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from etils import epath

from distill_jax.diffusion.inpainting import with_inpainting
from distill_jax.diffusion.trained import Guidance, Renoise, Trained
from distill_jax.models.diffusers_files import unet_of
from distill_jax.models.pretrained import torch_state
from distill_jax.sampling.loading import load
from distill_jax.storage import checkpoint, safetensors
from distill_jax.teachers import importing
from distill_jax.teachers.diffusers import read
from distill_jax.teachers.pipelines import check_exportable, write_pipeline
from tests import stable_diffusion
from tests.models.diffusers.sdxl import POOLED, SDXL, TEXTS
from tests.models.test_sdxl import state_of
from tests.teachers import test_diffusers

EULER = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"}


def write(folder, dtype="float32", unet=None, first=None, second=None):
    """Writes a pipeline with the recorded weights, and some changes of its configs."""
    unet = {**SDXL, **(unet or {})}
    text = {**TEXTS["text_encoder"], **(first or {})}
    test_diffusers.write(folder, unet=unet, scheduler=EULER, text=text)
    (folder / "text_encoder_2").mkdir()
    text = {**TEXTS["text_encoder_2"], **(second or {})}
    (folder / "text_encoder_2" / "config.json").write_text(json.dumps(text))
    safetensors.write(folder / "unet" / test_diffusers.NAME, state_of(dtype))
    return folder


def test_a_pipeline_of_sdxl_becomes_a_teacher_with_a_pooled_text(tmp_path):
    imported = read(write(tmp_path / "sdxl", dtype="float16"))
    assert (imported.parameterization, imported.label_dropout) == ("eps", 0.1)
    assert imported.data.x.shape == (8, 8, 4)
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in imported.data.cond} == {
        "text": ((7, 12), "float32"),
        "text_mask": ((7,), "bool"),
        "pooled": ((POOLED,), "float32"),
    }
    assert imported.trained.guidance.null
    assert not imported.schedule.get("zero_snr")


def test_an_imported_unet_of_sdxl_is_a_finished_network_and_keeps_every_bit(tmp_path):
    folder = write(tmp_path / "sdxl", dtype="float16")
    student = load(importing.convert("diffusers", folder, tmp_path / "x"))
    again, given = torch_state(student.params), state_of("float16")
    assert again.keys() == given.keys()
    for name, leaf in given.items():
        np.testing.assert_array_equal(again[name].read(()), leaf.read(()), err_msg=name)
        assert again[name].dtype == leaf.dtype


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"second": {"hidden_size": 8}},
            "text_encoder/config.json and text_encoder_2/config.json has hidden_size 5 and 8 and "
            "max_position_embeddings 7 and 7; the UNet takes 12 channels",
        ),
        (
            {"first": {"hidden_size": "5"}},
            "has hidden_size '5' and 7 .* the UNet takes 12 channels",
        ),
        ({"second": {"max_position_embeddings": 8}}, "max_position_embeddings 7 and 8; the UNet"),
        ({"second": {"projection_dim": 5}}, "has projection_dim 5; the UNet takes a pooled .* 6$"),
        (
            {"second": {"projection_dim": None}},
            "text_encoder_2/config.json has projection_dim None",
        ),
        ({"unet": {"addition_embed_type": "image"}}, "addition_embed_type is 'image'; expected"),
        (  # SDXL's refiner takes five numbers.
            {"unet": {"projection_class_embeddings_input_dim": 5 * 8 + POOLED}},
            "projection_class_embeddings_input_dim is 46; expected 6 x addition_time_embed_dim",
        ),
        ({"unet": {"transformer_layers_per_block": [1, 2, 4]}}, "transformer_blocks.3.* network"),
    ],
)
def test_a_pipeline_of_sdxl_that_does_not_fit_is_one_message(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path / "sdxl", **changes))


def test_a_missing_second_text_encoder_is_one_message(tmp_path):
    folder = write(tmp_path / "sdxl")
    (folder / "text_encoder_2" / "config.json").unlink()
    (folder / "text_encoder_2").rmdir()
    with pytest.raises(ValueError) as error:
        importing.convert("diffusers", folder, tmp_path / "x")
    assert str(error.value) == (
        f"{folder} has no text_encoder_2/; expected a whole pipeline with a UNet as diffusers "
        "saves it, with unet, scheduler, text_encoder, text_encoder_2, vae"
    )
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """Returns a student of two calls from a whole pipeline, and the pipeline's directory."""
    folder = epath.Path(tmp_path_factory.mktemp("sdxl"))
    source = stable_diffusion.write_xl_pipeline(folder / "sdxl")
    teacher = load(importing.convert("diffusers", source, folder / "teacher"))
    trained = Trained(Renoise((1.0, 0.5)), Guidance(fixed_w=7.0))
    manifest = dataclasses.replace(teacher.manifest, trained=trained, stage="s00_dmd2")
    final = folder / "student" / "final"
    checkpoint.save_final(final, teacher.params, manifest.to_json())
    return load(final, parts=[source]), source


def test_a_student_of_sdxl_becomes_a_pipeline_with_both_text_encoders(student, tmp_path):
    student, source = student
    out = write_pipeline(student, source, tmp_path / "out")
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert index["force_zeros_for_empty_prompt"] is True
    assert index["scheduler"] == ["diffusers", "LCMScheduler"]
    parts = [name for name, part in index.items() if isinstance(part, list) and part[0]]
    assert sorted([*parts, "README.md", "distill_jax.json", "model_index.json"]) == sorted(
        path.name for path in out.iterdir()
    )
    config, given = (json.loads((each / "unet/config.json").read_text()) for each in (out, source))
    both = config.keys() & given.keys() - {"attention_head_dim"}  # A list, and one number.
    assert {key: config[key] for key in both} == {key: given[key] for key in both}
    assert unet_of(config, "") == unet_of(given, "")
    before, after = (
        safetensors.read(each / "unet" / test_diffusers.NAME) for each in (source, out)
    )
    assert before.keys() == after.keys()
    for name, leaf in before.items():
        np.testing.assert_array_equal(after[name].read(()), leaf.read(()), err_msg=name)
    assert "timesteps=[999, 499], guidance_scale=1" in (out / "README.md").read_text()


def test_what_a_pipeline_of_sdxl_lacks_is_one_message(student, tmp_path):
    student, source = student
    index = json.loads((source / "model_index.json").read_text())
    half = pathlib.Path(shutil.copytree(source, tmp_path / "half"))
    (half / "model_index.json").write_text(json.dumps({**index, "tokenizer_2": None}))
    shutil.rmtree(half / "tokenizer_2")
    with pytest.raises(ValueError, match="half has no tokenizer_2/; expected the pipeline of the"):
        write_pipeline(student, half, tmp_path / "out")
    masked = with_inpainting(student.manifest.spec)
    with pytest.raises(ValueError, match="with the conditions inpaint .*, pooled"):
        check_exportable(dataclasses.replace(student.manifest, spec=masked))
