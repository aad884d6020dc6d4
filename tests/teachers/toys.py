"""Training states of any network, like those of google-research/diffusion_distillation."""

from typing import Any

import flax
import jax
import numpy as np
from flax import serialization

from distill_jax.config import base
from distill_jax.diffusion.spec import image_data
from distill_jax.models.build import abstract_params, make_network

MLP = {"name": "mlp", "width": 8, "blocks": 1}
UNET = {
    "name": "unet",
    "channels": 32,
    "embedding": 32,
    "multipliers": (1,),
    "blocks": 1,
    "attention": (),
    "heads": 1,
}


@flax.struct.dataclass
class TrainState:
    step: int
    optimizer: Any
    ema_params: Any
    num_sample_steps: int


def config_of(model, num_classes=3):
    """Returns a config of 4x4 noise."""
    config = base()
    config.data = {"name": "noise", "size": 4, "channels": 1, "num_classes": num_classes}
    config.data.count = 16
    config.model = model
    return config


def network_of(config):
    return make_network(config.to_dict(), image_data((4, 4, 1), config.data.num_classes))


def params_of(config):
    """Returns parameters without zeros."""
    shapes = abstract_params(network_of(config), ())
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) / 8, shapes)


def save(path, params, num_sample_steps=0):
    """Writes the file, with an unused optimizer state."""
    optimizer = {"target": params, "state": {"step": np.int32(7)}}
    state = TrainState(7, optimizer, params, num_sample_steps)
    path.write_bytes(serialization.to_bytes(state))
    return path
