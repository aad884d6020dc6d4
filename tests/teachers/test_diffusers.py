"""Tests of the reader of Stable Diffusion's pipelines, on small ones with random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.schedule import LinearBeta
from distill_jax.models.pretrained import torch_state
from distill_jax.sampling.loading import load
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from distill_jax.teachers import importing
from distill_jax.teachers.diffusers import read
from tests.models.diffusers import UNETS, VAE, weights
from tests.models.test_diffusers import RECORDED

NAME = "diffusion_pytorch_model.safetensors"
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
}
TEXT = {"hidden_size": 12, "max_position_embeddings": 7}
CLASS = {"_class_name": "UNet2DConditionModel", "sample_size": 8}


def write(folder, name="sd2", dtype="float32", unet=None, scheduler=None, text=None, vae=None):
    """Writes a pipeline with the recorded weights of a UNet, and some changes of its configs."""
    configs = {
        "unet/config.json": {**CLASS, **UNETS[name], **(unet or {})},
        "scheduler/scheduler_config.json": {**SCHEDULER, **(scheduler or {})},
        "text_encoder/config.json": {**TEXT, **(text or {})},
        "vae/config.json": {"_class_name": "AutoencoderKL", **VAE, **(vae or {})},
        "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    }
    for place, content in configs.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(json.dumps(content))
    safetensors.write(folder / "unet" / NAME, state_of(name, dtype))
    return folder


def state_of(name, dtype="float32"):
    """Returns the recorded weights of a UNet."""
    names = json.loads(str(RECORDED[f"{name}_names"]))
    return {key: of_array(weights(key, tuple(shape)).astype(dtype)) for key, shape in names.items()}


def test_a_pipeline_becomes_a_teacher_with_the_dtypes_of_its_file(tmp_path):
    imported = read(write(tmp_path / "sd", dtype="float16"))
    assert imported.schedule == {
        "name": "ddpm",
        "beta_min": 0.00085,
        "beta_max": 0.012,
        "num_steps": 1000,
        "power": 2,
    }
    assert (imported.parameterization, imported.label_dropout) == ("eps", 0.1)
    assert imported.data.x.shape == (8, 8, 4)
    assert not imported.data.bounded
    assert {name: leaf.shape for name, leaf in imported.data.cond} == {
        "text": (7, 12),
        "text_mask": (7,),
    }
    assert imported.trained.guidance.null
    assert {leaf.dtype for leaf in jax.tree.leaves(imported.params)} == {np.dtype("float16")}
    assert dict(read(write(tmp_path / "in", "inpaint")).data.cond)["inpaint"].shape == (8, 8, 5)


def test_an_imported_pipeline_is_a_finished_network_and_keeps_every_bit(tmp_path):
    final = importing.convert("diffusers", write(tmp_path / "sd", dtype="float16"), tmp_path / "x")
    student = load(final)
    source = student.manifest.lineage.source
    assert (source["format"], source["file"], len(source["sha256"])) == ("diffusers", "sd", 64)
    again = torch_state(student.params)
    for name, leaf in state_of("sd2", "float16").items():
        np.testing.assert_array_equal(again[name].read(()), leaf.read(()), err_msg=name)
        assert again[name].dtype == leaf.dtype


@pytest.mark.parametrize(("name", "zero"), [("published", False), ("zero", True)])
def test_the_signal_levels_are_those_of_diffusers(tmp_path, name, zero):
    kind = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": zero}
    imported = read(write(tmp_path / "sd", scheduler=kind))
    schedule = imported.network_spec().schedule
    assert (imported.parameterization, schedule) == (
        "v",
        LinearBeta(0.00085, 0.012, 1000, 2, zero),
    )
    found = schedule.alpha(jnp.arange(1, 1001) / 1000)
    np.testing.assert_allclose(found, RECORDED[f"alpha_{name}"], atol=5e-5)
    assert jnp.isfinite(schedule.logsnr(jnp.linspace(0, 1, 4001))).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": {"_class_name": "Transformer2DModel"}}, "'Transformer2DModel'; expected UNet2D"),
        ({"unet": {"class_embed_type": "timestep"}}, "class_embed_type is 'timestep'; only None"),
        ({"unet": {"norm_num_groups": 3}}, "widths is .* expected multiples of groups = 3"),
        ({"unet": {"attention_head_dim": [1]}}, "attention_head_dim is .* one for each level"),
        ({"unet": {"up_block_types": ["UpBlock2D"]}}, "up_block_types is .* in reverse"),
        ({"unet": {"layers_per_block": 2}}, "has no down_blocks.0..*: it is of another network"),
        ({"unet": {"down_block_types": [{}, {}]}}, "down_block_types is "),
        ({"unet": {"time_cond_proj_dim": 16}}, "takes a guidance strength, so it is a student"),
        ({"unet": {"in_channels": 5}}, "channels beside the 4 of x: 1; expected 5, a mask and a"),
        ({"unet": {"sample_size": 5}}, "the latent is 5x5; .* multiples of 2"),
        ({"scheduler": {"rescale_betas_zero_snr": True}}, "'epsilon' and rescale_betas_zero_snr"),
        ({"scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler"}}, "_class_name is 'Flow"),
        ({"scheduler": {"beta_schedule": "x"}}, "beta_schedule is 'x'; expected one of 'linear'"),
        ({"scheduler": {"num_train_timesteps": 50}}, "num_train_timesteps is 50"),
        ({"scheduler": {"trained_betas": [0.1]}}, "trained_betas is "),
        ({"text": {"hidden_size": 13}}, "has hidden_size 13 .* the UNet takes 12 channels"),
        ({"vae": {"latent_channels": 16}}, "latent_channels is 16; the UNet takes 4"),
    ],
)
def test_a_pipeline_that_is_not_supported_is_one_message(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path / "sd", **changes))


def test_half_a_pipeline_and_a_missing_shard_are_one_message(tmp_path):
    folder = write(tmp_path / "sd")
    with pytest.raises(ValueError, match="has the array 'more', which the network of"):
        safetensors.write(
            folder / "unet" / NAME, {**state_of("sd2"), "more": of_array(np.zeros(1))}
        )
        read(folder)
    (folder / "unet" / NAME).unlink()
    index = {"weight_map": {"conv_in.weight": "a-00001-of-00002.safetensors"}}
    (folder / "unet" / f"{NAME}.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="a-00001-of-00002.safetensors does not exist"):
        read(folder)
    (folder / "unet" / f"{NAME}.index.json").unlink()
    with pytest.raises(ValueError, match="has no weights; expected one of diffusion_pytorch_model"):
        read(folder)
    (folder / "scheduler" / "scheduler_config.json").unlink()
    (folder / "scheduler").rmdir()
    with pytest.raises(ValueError, match="has no scheduler/; expected a whole pipeline"):
        importing.convert("diffusers", folder, tmp_path / "x")
