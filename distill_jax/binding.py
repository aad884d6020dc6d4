"""What a config or a manifest says of a network, made into one: names looked up, sizes fitted."""

import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Binding, Sizes
from distill_jax.diffusion.prediction import PARAMETERIZATIONS
from distill_jax.diffusion.schedule import SCHEDULES
from distill_jax.methods import Method
from distill_jax.models import NETWORKS
from distill_jax.tables import build, lookup
from distill_jax.typing import Tree


def make_binding(spec: Mapping[str, Any], shape: tuple[int, ...], num_classes: int) -> Binding:
    """Network, parameterization and schedule of a config or manifest; equal ones are identical.

    Args:
      spec: with "model", "schedule" and "parameterization".
      shape: (h, w, c) of one image.
      num_classes: of its labels.
    """
    names = ("model", "schedule", "parameterization")
    return _binding(json.dumps({name: spec[name] for name in names}), tuple(shape), num_classes)


@functools.cache
def _binding(spec: str, shape: tuple[int, ...], num_classes: int) -> Binding:
    spec = as_tuples(json.loads(spec))
    parameterization = lookup(PARAMETERIZATIONS, "parameterization", spec["parameterization"])
    schedule = build(SCHEDULES, "schedule", spec["schedule"])
    sizes = Sizes(shape, num_classes, parameterization.channels * shape[-1], schedule)
    network = build(NETWORKS, "network", spec["model"], sizes)
    return Binding(network, parameterization, sizes)


def initial_params(key: jax.Array, binding: Binding, method: Method) -> Tree:
    """Fresh parameters of the network that `method` trains."""
    return _initial(key, binding, method.inputs)


def _initial(key: jax.Array, binding: Binding, inputs: tuple[str, ...]) -> Tree:
    cond = binding.sizes.conditions(inputs)
    z = jnp.zeros((1, *binding.sizes.shape))
    return binding.network.init(key, z, jnp.zeros((1,)), cond)


def abstract_params(binding: Binding, method: Method) -> Tree:
    """Shapes and types of `initial_params`, computed without making any."""
    return _shapes(binding, method.inputs)


@functools.cache  # All halvings of a chain have the same.
def _shapes(binding: Binding, inputs: tuple[str, ...]) -> Tree:
    return jax.eval_shape(lambda key: _initial(key, binding, inputs), jax.random.key(0))


def as_tuples(spec: Any) -> Any:
    """JSON lists back to tuples, which are hashable."""
    if isinstance(spec, Mapping):
        return {key: as_tuples(value) for key, value in spec.items()}
    return tuple(as_tuples(value) for value in spec) if isinstance(spec, list) else spec
