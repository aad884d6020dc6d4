"""Denoisers with known answers, and networks small enough to compile in a moment."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.denoiser import Denoiser, NetworkSpec
from distill_jax.diffusion.prediction import PARAMETERIZATIONS, Prediction, eps_from_x
from distill_jax.diffusion.schedule import Cosine, expand
from distill_jax.diffusion.spec import image_data, image_spec
from distill_jax.models.mlp import mlp
from distill_jax.runtime.config_file import load_file
from distill_jax.sampling.manifest import Lineage, Manifest
from distill_jax.typing import Batch


def gaussian_denoiser(schedule, std, mean=0.0):
    """Returns the exact denoiser of data N(mean, std^2): E[x | z_t], which is linear in z_t."""

    def predict(z, t, cond, key=None):
        alpha, sigma = expand(schedule.alpha(t), z), expand(schedule.sigma(t), z)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        x = mean + gain * (z - alpha * mean)
        return Prediction(x, eps_from_x(z, x, schedule, t))

    return Denoiser(schedule, predict)


def constant_denoiser(schedule, value):
    """Returns the exact denoiser of a dataset of one image."""

    def predict(z, t, cond, key=None):
        x = jnp.full_like(z, value)
        return Prediction(x, eps_from_x(z, x, schedule, t))

    return Denoiser(schedule, predict)


def tiny_network(parameterization="v", schedule=None):
    """Returns a network for 4x4 images of 3 classes, with a few hundred parameters."""
    head = PARAMETERIZATIONS[parameterization]
    spec = image_spec((4, 4, 1), 3, head.channels, schedule)
    return NetworkSpec(mlp(spec, width=8, blocks=1), head, spec)


def inputs_of(method):
    """Returns the inputs of a method's network beyond z, t and the conditions of the data."""
    return method.trained(Cosine()).inputs


def check(method, teacher):
    """Calls Method.check with the teacher's Trained, or with None for no teacher."""
    method.check(teacher and teacher.trained(Cosine()))


def sample(method, key, student, z, cond):
    """Returns samples of a denoiser, drawn with the sampler of the method's finished network."""
    return method.sampler(student.schedule)(key, student, z, cond)


def manifest_of(method, shape=(4, 4, 1), num_classes=3, schedule=None, **fields):
    """Returns the manifest of a network that the method trained on images."""
    given = {
        "stage": "s00_toy",
        "trained": method.trained(schedule or Cosine()),
        "distilled": method.needs_teacher,
        "spec": image_data(shape, num_classes),
        "model": {"name": "mlp", "width": 8, "blocks": 1},
        "schedule": {"name": "cosine"},
        "parameterization": "v",
        "data": {"name": "digits"},
        "lineage": Lineage({"name": type(method).__name__.lower()}),
    }
    return Manifest(**{**given, **fields})


def make_batch(x, cond, null):
    """Returns a batch with the number of examples in x, or else in a condition."""
    rows = jax.tree.leaves((x, cond, null))
    return Batch(np.arange(len(rows[0])), x, cond, null)


def filled(params, scale=0.3):
    """Returns parameters that are not zero anywhere, so that zero-initialised layers count."""
    rng = np.random.default_rng(7)  # jax.random would compile a program per shape.

    def fill(leaf):
        return jnp.asarray(scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree.map(fill, params)


def jitted(network):
    """Returns the network with compiled functions."""
    functions = {k: jax.jit(v) for k, v in network._asdict().items() if callable(v)}
    return network._replace(**functions)


ROOT = pathlib.Path(__file__).parent.parent


def smoke_config(name="digits_guided"):
    """Returns a config at its smoke size."""
    return load_file(ROOT / "configs" / f"{name}.py").get_config("smoke")


# A config file of two stages that take seconds.
TINY_CHAIN = """
from distill_jax.config import base, pipeline, stage


def get_config():
    config = base()
    config.data.name = "mixture"
    config.model.update(name="mlp", width=8, blocks=1)
    config.batch_size, config.save_every, config.log_every = 8, 2, 1
    config.evaluate.update(w=(0.0,), num_samples=8)
    rates = {"learning_rate": 1e-3, "steps": 9}
    config.stages = pipeline(
        stage("teacher", "diffusion", num_steps=2, **rates),
        stage("n0001", "progressive", num_steps=1, **rates),
    )
    return config
"""
