"""Directories of networks with the random weights of the recorded names."""

import json
import pathlib

import numpy as np

from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from tests.models.pretrained import weights

RECORDED = np.load(pathlib.Path(__file__).parent / "recorded.npz")


def write(folder, config, recorded, name="model.safetensors", drop=(), config_name="config.json"):
    """Writes a directory with the random weights of the recorded names."""
    (folder / config_name).write_text(json.dumps(config))
    shapes = json.loads(str(RECORDED[recorded]))
    state = {key: of_array(weights(key, tuple(shape))) for key, shape in shapes.items()}
    safetensors.write(folder / name, {key: x for key, x in state.items() if key not in drop})
    return folder
