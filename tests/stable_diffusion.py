"""A small pipeline of Stable Diffusion with random weights, and the config of a chain from it."""

import json

import jax
import numpy as np
from etils import epath
from PIL import Image

from distill_jax.models.build import abstract_params, make_network
from distill_jax.models.diffusers_files import unet_of
from distill_jax.models.dit_files import dit_of
from distill_jax.models.pretrained import torch_state
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from distill_jax.teachers import importing
from distill_jax.teachers.diffusers import spec_of
from tests.models.diffusers import DIT, SHALLOW, UNET, weights
from tests.models.pretrained import text as pretrained_text
from tests.sampling import test_autoencoder, test_compositions, test_pretrained
from tests.teachers import test_dit
from tests.teachers.test_diffusers import CLASS, NAME, SCHEDULER

SIDE, LENGTH = 4, 12  # Of the latents of the pictures of shapes, and of a text.
LEVEL = {
    "block_out_channels": [8],
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "cross_attention_dim": 16,
    "sample_size": SIDE,
}
MODEL = {
    "widths": (8,),
    "blocks": 1,
    "transformers": (),
    "heads": (2,),
    "groups": 4,
    "linear": False,
}


def write_pipeline(folder, channels=4):
    """Writes a pipeline: a UNet of one level, VAE, CLIP's text tower, tokenizer and scheduler.

    The UNet takes as many channels: 9 in an inpainting model.
    """
    test_pretrained.write_pipeline(folder)
    test_autoencoder.write(folder / "vae")
    config = {**CLASS, **UNET, **SHALLOW, **LEVEL, "in_channels": channels}
    contents = {
        "unet/config.json": config,
        "scheduler/scheduler_config.json": SCHEDULER,
        "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    }
    for place, content in contents.items():
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(json.dumps(content))
    _write_unet(folder, config)
    return folder


def _write_unet(folder, config):
    """Writes random weights of the UNet with this config.json."""
    said = unet_of(config, "unet")
    data = spec_of(epath.Path(folder), said, SIDE)
    described = {"model": said.model, "schedule": {"name": "ddpm"}, "parameterization": "eps"}
    leaves = abstract_params(make_network(described, data), ())
    arrays = torch_state(jax.tree.map(lambda leaf: np.zeros(leaf.shape), leaves))
    state = {name: of_array(weights(name, leaf.shape)) for name, leaf in arrays.items()}
    safetensors.write(folder / "unet" / NAME, state)


def write_xl_pipeline(folder):
    """Writes a pipeline of SDXL: a UNet whose middle has two transformer blocks, and its parts."""
    pretrained_text.write_pipeline(
        folder, "sdxl", test_compositions.shapes_of, test_compositions.save
    )
    test_autoencoder.write(folder / "vae")
    (small, big), sizes = (kind[1] for kind in pretrained_text.ENCODERS["sdxl"]), 8
    config = {
        **CLASS,
        **UNET,
        **SHALLOW,
        **LEVEL,
        "cross_attention_dim": small["hidden_size"] + big["hidden_size"],
        "transformer_layers_per_block": [2],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": sizes,
        "projection_class_embeddings_input_dim": 6 * sizes + big["projection_dim"],
    }
    contents = {"unet/config.json": config, "scheduler/scheduler_config.json": SCHEDULER}
    for place, content in contents.items():
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text(json.dumps(content))
    _write_unet(folder, config)
    return folder


def write_parts(folder, channels=4):
    """Writes a pipeline, its teacher and captioned pictures; returns the changes of a config."""
    pipeline = write_pipeline(folder / "pipeline", channels)
    return {**_pictures(folder, pipeline, LENGTH), **_network(folder, pipeline, MODEL)}


def write_xl_parts(folder, stages=("s00_dmd2", "s01_gan")):
    """Writes the same parts for SDXL and the stages from it, in which SwD has smaller latents."""
    pipeline = write_xl_pipeline(folder / "pipeline")
    model = {**MODEL, "linear": True, "depths": (2,), "size_channels": 8}
    changes = _pictures(folder, pipeline, pretrained_text.LENGTH)
    if stages == ("s00_swd",):
        changes |= {"stages.s00_swd.method.resolutions": (1, 2, 3, SIDE), "stages.s00_swd.lora": 2}
    return {**changes, **_network(folder, pipeline, model, stages)}


def _pictures(folder, pipeline, length):
    """Writes captioned pictures; returns the changes of a config's data and texts."""
    (folder / "pictures").mkdir()
    for i in range(80):
        Image.new("RGB", (16, 16), (i, i, i)).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"the {i}")
    changes = {"data.path": str(folder / "pictures"), "data.size": 4 * SIDE}
    return {**changes, "conditioner.path": str(pipeline), "conditioner.length": length}


def write_prompted_parts(folder, stage):
    """Writes a pipeline, its teacher and a file of prompts; returns the changes of a config.

    `stage` is the stage of that teacher.
    """
    changes = write_parts(folder)
    prompts = folder / "prompts.txt"
    prompts.write_text("the 1\nthe 2")
    changes[f"stages.{stage}.teacher"] = changes.pop("stages.s00_finetune.teacher")
    return {**changes, "data.path": str(prompts)}


def write_dit_parts(folder):
    """Writes the pipeline of a DiT and its teacher; returns the changes of a config."""
    pipeline = test_dit.write(folder / "pipeline")
    codec = test_autoencoder.write(folder / "vae")
    changes = {"data.size": 32, "data.num_labels": 5}
    model = dit_of({**DIT, "_class_name": ""}, "").model
    return {**changes, **_network(folder, pipeline, model), "codec.path": str(codec)}


def _network(folder, pipeline, model, stages=("s00_finetune",)):
    """Imports the network of a pipeline; returns the changes of a config."""
    importing.convert("diffusers", pipeline, folder / "teacher")
    places = {f"stages.{stage}.teacher": folder / "teacher" for stage in stages}
    places["codec.path"] = pipeline
    changes = {key: str(place) for key, place in places.items()}
    return changes | {f"model.{name}": value for name, value in model.items()}
