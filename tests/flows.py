"""Small pipelines of Stable Diffusion 3 and FLUX.1 with random weights, and a config's changes."""

import json

import jax
import numpy as np
from etils import epath
from PIL import Image

from distill_jax.models.build import abstract_params, make_network
from distill_jax.models.flux_files import flux_of
from distill_jax.models.mmdit_files import mmdit_of
from distill_jax.models.pretrained import torch_state
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from distill_jax.teachers import flow, flux, importing
from tests.models.diffusers import FLUXES, MMDITS, mmdit_weights
from tests.models.pretrained import text
from tests.sampling import test_autoencoder
from tests.sampling.test_compositions import save, shapes_of

SIDE = 4  # Of the latents of the pictures.
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
NAME = "diffusion_pytorch_model.safetensors"
# Configs of the transformers, for the text encoders of tests.models.pretrained.text.
NETWORKS = {
    "sd3": {
        "_class_name": "SD3Transformer2DModel",
        **MMDITS["sd35"],
        "sample_size": SIDE,
        "joint_attention_dim": text.WIDTH,
        "pooled_projection_dim": text.SMALL["projection_dim"] + text.BIG["projection_dim"],
    },
    "flux": {
        "_class_name": "FluxTransformer2DModel",
        **FLUXES["dev"],
        "joint_attention_dim": text.WIDTH,
        "pooled_projection_dim": text.SMALL["hidden_size"],
    },
}
GIVEN = {"length": text.T5_LENGTH, "resolutions": [2, SIDE]}


def write_pipeline(folder, kind):
    """Writes a whole pipeline, and returns its folder and the values of --set for its reader."""
    text.write_pipeline(folder, kind, shapes_of, save)
    test_autoencoder.write(folder / "vae")
    config = NETWORKS[kind]
    contents = {"transformer/config.json": config, "scheduler/scheduler_config.json": SCHEDULER}
    for place, content in contents.items():
        (folder / place).parent.mkdir()
        (folder / place).write_text(json.dumps(content))
    given = GIVEN | ({"side": SIDE, "w": 3.5} if kind == "flux" else {})
    spec, inputs = spec_of(folder, kind), ("w",) if kind == "flux" else ()
    described = {"model": {**model_of(kind)}, "schedule": {"name": "rectified_flow"}}
    described["parameterization"] = "flow"
    leaves = abstract_params(make_network(described, spec), inputs)
    arrays = torch_state(jax.tree.map(lambda leaf: np.zeros(leaf.shape), leaves))
    state = {name: of_array(mmdit_weights(name, leaf.shape)) for name, leaf in arrays.items()}
    safetensors.write(folder / "transformer" / NAME, state)
    return folder, given


def model_of(kind):
    """Returns the network of a pipeline, as in a config."""
    read = mmdit_of if kind == "sd3" else flux_of
    return read(NETWORKS[kind], kind).model


def spec_of(folder, kind):
    """Returns the spec of the latents and texts of a pipeline."""
    folder, config = epath.Path(folder), NETWORKS[kind]
    if kind == "sd3":
        return flow.spec_of(folder, mmdit_of(config, kind), text.T5_LENGTH)
    return flux.spec_of(folder, flux_of(config, kind), SIDE, text.T5_LENGTH)


def write_parts(folder, kind):
    """Writes a pipeline, its teacher and captioned pictures; returns the changes of a config."""
    pipeline, given = write_pipeline(folder / "pipeline", kind)
    importing.convert("diffusers", pipeline, folder / "teacher", given=given)
    (folder / "pictures").mkdir()
    for i in range(80):
        Image.new("RGB", (16, 16), (i, i, i)).save(folder / "pictures" / f"{i}.png")
        (folder / "pictures" / f"{i}.txt").write_text(f"a fox {i}")
    model = model_of(kind) | ({"guidance": False} if kind == "flux" else {})
    swd = "stages.s00_swd"
    return {
        "data.path": str(folder / "pictures"),
        "data.size": 16,
        "codec.path": str(pipeline),
        "conditioner.path": str(pipeline),
        "conditioner.length": text.T5_LENGTH,
        "schedule.shift": SCHEDULER["shift"],
        f"{swd}.teacher": str(folder / "teacher"),
        f"{swd}.method.times": (1.0, 0.5),
        f"{swd}.method.resolutions": (2, SIDE),
        f"{swd}.lora": 2,
        **{f"model.{name}": value for name, value in model.items()},
    }
