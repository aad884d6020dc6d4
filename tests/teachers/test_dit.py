"""Tests of the reader of DiTPipeline directories, on small ones with random weights."""

import json

import numpy as np
import pytest

from distill_jax.models.dit_files import repeated
from distill_jax.models.pretrained import torch_state
from distill_jax.sampling.loading import load
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from distill_jax.teachers import TEACHERS, importing
from tests.models.diffusers import DIT, VAE
from tests.models.test_diffusers_dit import state_of

NAME = "diffusion_pytorch_model.safetensors"
SCHEDULER = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
EMB = "transformer_blocks.2.norm1.emb.class_embedder.embedding_table.weight"
read = TEACHERS["diffusers"]


def write(folder, dtype="float32", state=None, scheduler=None, vae=None, **changes):
    """Writes a pipeline with the recorded weights of a DiT, and some changes of its configs."""
    configs = {
        "transformer/config.json": {"_class_name": "DiTTransformer2DModel", **DIT, **changes},
        "scheduler/scheduler_config.json": {**SCHEDULER, **(scheduler or {})},
        "vae/config.json": {"_class_name": "AutoencoderKL", **VAE, **(vae or {})},
        "model_index.json": {"_class_name": "DiTPipeline", "id2label": {"0": "tench"}},
    }
    for place, content in configs.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(json.dumps(content))
    safetensors.write(folder / "transformer" / NAME, {**state_of(dtype), **(state or {})})
    return folder


def test_a_pipeline_becomes_a_teacher_with_labels_on_latents(tmp_path):
    imported = read(write(tmp_path / "dit", _class_name="Transformer2DModel"))
    assert imported.schedule == {
        "name": "ddpm",
        "beta_min": 0.0001,
        "beta_max": 0.02,
        "num_steps": 1000,
        "power": 1,
    }
    assert (imported.parameterization, imported.label_dropout) == ("eps", 0.1)
    assert (imported.data.x.shape, imported.data.bounded) == ((8, 8, 4), False)
    assert dict(imported.data.cond)["label"].classes == imported.num_classes == 5
    assert imported.trained.guidance.null
    given = {"freq_shift": 0, "label_dropout": 0.2}
    other = read(write(tmp_path / "dit"), None, given)
    assert (other.model, other.label_dropout) == ({**imported.model, "freq_shift": 0}, 0.2)


def test_an_imported_dit_is_a_finished_network_without_the_variance(tmp_path):
    final = importing.convert("diffusers", write(tmp_path / "dit", "float16"), tmp_path / "x")
    student = load(final)
    assert student.manifest.lineage.source["file"] == "dit"
    again = repeated(torch_state(student.params), DIT["num_layers"])
    expected = state_of("float16")
    assert again.keys() == expected.keys()
    for name, leaf in expected.items():
        theirs = leaf.read(())
        if name.startswith("proj_out_2"):  # Of each pixel of a patch, the first four channels.
            theirs = np.concatenate([theirs[i : i + 4] for i in range(0, 32, 8)])
        np.testing.assert_array_equal(again[name].read(()), theirs, err_msg=name)


def test_a_dit_without_variance_keeps_every_array(tmp_path):
    state = {f"proj_out_2.{k}": of_array(v) for k, v in OUT.items()}
    imported = read(write(tmp_path / "dit", state=state, out_channels=None))
    found = torch_state(imported.params)
    for name, leaf in state.items():
        np.testing.assert_array_equal(found[name].read(()), leaf.read(()))


OUT = {
    "weight": np.arange(256, dtype=np.float32).reshape(16, 16),
    "bias": np.ones(16, np.float32),
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "PixArtTransformer2DModel"}, "'PixArt.*expected DiTTransformer2DM"),
        ({"norm_type": "ada_norm_single"}, "norm_type is 'ada_norm_single'; only 'ada_norm_zero'"),
        ({"out_channels": 6}, "out_channels is 6; expected in_channels 4, or twice as many"),
        ({"num_layers": 4}, "has no transformer_blocks.3.*: it is of another network"),
        ({"num_layers": 2}, "has the array 'transformer_blocks.2.* lacks"),
        ({"num_embeds_ada_norm": 6}, r"embedding_table.weight is of shape \(6, 16\).*\(7, 16\)"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0; expected a whole number"),
        ({"attention_head_dim": 9}, "width is 18; expected a multiple of 4"),
        ({"sample_size": 5}, "patch 2 does not divide the image of 5x5"),
        ({"sample_size": 2**40}, "sample_size is 1099511627776; expected a whole number"),
        ({"norm_eps": "x"}, "norm_eps is 'x'; expected a number"),
        ({"state": {EMB: of_array(np.zeros((6, 16)))}}, f"{EMB} differs from that of block 0"),
        ({"vae": {"latent_channels": 16}}, "latent_channels is 16; the DiT takes 4"),
        ({"scheduler": {"beta_schedule": "x"}}, "beta_schedule is 'x'; expected one of 'linear'"),
    ],
)
def test_a_pipeline_that_is_not_supported_is_one_message(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path / "dit", **changes))


def test_half_a_pipeline_is_one_message(tmp_path):
    folder = write(tmp_path / "dit")
    with pytest.raises(ValueError, match="freq_shift is 2; expected a whole number from 0 to 1"):
        read(folder, None, {"freq_shift": 2})
    with pytest.raises(ValueError, match="leave --config out"):
        read(folder, {})
    (folder / "transformer" / NAME).unlink()
    with pytest.raises(ValueError, match="has no weights; expected one of diffusion_pytorch_model"):
        importing.convert("diffusers", folder, tmp_path / "x")
    (folder / "vae" / "config.json").unlink()
    (folder / "vae").rmdir()
    with pytest.raises(
        ValueError, match="has no vae/; expected a whole pipeline with a transformer"
    ):
        importing.convert("diffusers", folder, tmp_path / "x")
