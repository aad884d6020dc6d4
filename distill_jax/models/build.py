"""What a config or a manifest says of networks, made into some: names looked up, sizes fitted."""

import contextlib
import functools
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Binding, Sizes
from distill_jax.diffusion.prediction import PARAMETERIZATIONS, check_head
from distill_jax.diffusion.schedule import SCHEDULES
from distill_jax.models import NETWORKS
from distill_jax.runtime.registry import build, lookup
from distill_jax.typing import Tree


def make_binding(spec: Mapping[str, Any], shape: tuple[int, ...], num_classes: int) -> Binding:
    """Network, parameterization and schedule of a config or manifest; equal ones are identical.

    Args:
      spec: with "model", "schedule" and "parameterization".
      shape: (h, w, c) of one image.
      num_classes: of its labels.

    Raises:
      KeyError: for an unknown name.
      ValueError: for a parameterization that the schedule or the network does not go with.
    """
    names = ("model", "schedule", "parameterization")
    return _binding(json.dumps({name: spec[name] for name in names}), tuple(shape), num_classes)


@functools.cache
def _binding(spec: str, shape: tuple[int, ...], num_classes: int) -> Binding:
    spec = as_tuples(json.loads(spec))
    parameterization = lookup(PARAMETERIZATIONS, "parameterization", spec["parameterization"])
    schedule = build(SCHEDULES, "schedule", spec["schedule"])
    check_head(spec["parameterization"], schedule)
    sizes = Sizes(shape, num_classes, parameterization.channels * shape[-1], schedule)
    network, name = build(NETWORKS, "network", spec["model"], sizes), spec["parameterization"]
    if network.parameterizations and name not in network.parameterizations:
        raise ValueError(
            f"parameterization is {name!r}; network {spec['model']['name']!r} puts out "
            f"{', '.join(network.parameterizations)} alone"
        )
    return Binding(network, parameterization, sizes)


def matmul_precision(name: str) -> contextlib.AbstractContextManager:
    """Within it, float32 matrix products and convolutions are computed as config says.

    "default" leaves what is set: the device's way, or JAX_DEFAULT_MATMUL_PRECISION.
    """
    if name == "default":
        return contextlib.nullcontext()
    return jax.default_matmul_precision(name)


def initial_params(key: jax.Array, binding: Binding, inputs: tuple[str, ...]) -> Tree:
    """Fresh parameters of a network with these inputs beside z, t and label."""
    cond = binding.sizes.conditions(inputs)
    z = jnp.zeros((1, *binding.sizes.shape))
    return binding.network.init(key, z, jnp.zeros((1,)), cond)


@functools.cache  # All halvings of a chain have the same.
def abstract_params(binding: Binding, inputs: tuple[str, ...]) -> Tree:
    """Shapes and types of `initial_params`, computed without making any."""
    return jax.eval_shape(lambda key: initial_params(key, binding, inputs), jax.random.key(0))


def rounded(params: Tree, dtype: str) -> Tree:
    """Parameters as a network that is not trained keeps them, where they are: in `dtype`.

    Vectors and scalars stay float32, for they are few: biases, scales of normalisations, and
    frequencies, of which eight bits are too little.
    """
    return params if dtype == "float32" else _rounded(params, dtype)


@functools.partial(jax.jit, static_argnames="dtype")
def _rounded(params: Tree, dtype: str) -> Tree:
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, params)


def as_tuples(spec: Any) -> Any:
    """JSON lists back to tuples, which are hashable."""
    if isinstance(spec, Mapping):
        return {key: as_tuples(value) for key, value in spec.items()}
    return tuple(as_tuples(value) for value in spec) if isinstance(spec, list) else spec
