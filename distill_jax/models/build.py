"""Builds networks from the `model`, `schedule` and `parameterization` of a config or manifest."""

import contextlib
import functools
import json
from collections.abc import Container, Mapping
from typing import Any

import jax

from distill_jax.diffusion.denoiser import Network, NetworkSpec
from distill_jax.diffusion.prediction import PARAMETERIZATIONS, check_head
from distill_jax.diffusion.schedule import SCHEDULES, Schedule
from distill_jax.diffusion.spec import DataSpec, Spec
from distill_jax.models import NETWORKS
from distill_jax.models.adapters import new_adapters
from distill_jax.runtime.registry import EVERYTHING, build, check_allowed, lookup
from distill_jax.typing import Tree


def make_network(
    described: Mapping[str, Any], data: DataSpec, allow: Container[str] = ()
) -> NetworkSpec:
    """Network, parameterization and schedule of a config or manifest; equal ones are identical.

    Args:
      described: with "model", "schedule" and "parameterization"; the order of keys is no matter.
      data: what the network is called with.
      allow: names of models and schedules that may be imported, see registry.lookup.

    Raises:
      KeyError: for an unknown name.
      ValueError: for a parameterization that the schedule or the network does not go with, and for
        a name that may not be imported, even where it was before.
    """
    check_allowed((described[key].get("name") for key in ("model", "schedule")), allow)
    names = ("model", "schedule", "parameterization")
    text = json.dumps({name: described[name] for name in names}, sort_keys=True)
    return _make_network(text, data)


@functools.lru_cache(maxsize=64)
def _make_network(text: str, data: DataSpec) -> NetworkSpec:
    """make_network of the JSON text of what is described."""
    described = as_tuples(json.loads(text))
    name = described["parameterization"]
    parameterization = lookup(PARAMETERIZATIONS, "parameterization", name)
    schedule = build(SCHEDULES, "schedule", described["schedule"], allow=EVERYTHING, makes=Schedule)
    check_head(name, schedule)
    spec = Spec(data, parameterization.channels * data.x.shape[-1], schedule)
    network = build(NETWORKS, "network", described["model"], spec, allow=EVERYTHING, makes=Network)
    if network.parameterizations and name not in network.parameterizations:
        raise ValueError(
            f"parameterization is {name!r}; network {described['model']['name']!r} predicts "
            f"{', '.join(network.parameterizations)} only"
        )
    return NetworkSpec(network, parameterization, spec)


def matmul_precision(name: str) -> contextlib.AbstractContextManager:
    """Within it, float32 matrix products and convolutions are computed as config says.

    "default" leaves what is set: the device's way, or JAX_DEFAULT_MATMUL_PRECISION.
    """
    if name == "default":
        return contextlib.nullcontext()
    return jax.default_matmul_precision(name)


def initial_params(key: jax.Array, network_spec: NetworkSpec, inputs: tuple[str, ...]) -> Tree:
    """Fresh parameters of a network with these inputs beside z, t and label."""
    return network_spec.network.init(key, *network_spec.spec.example(inputs))


@functools.lru_cache(maxsize=64)  # All halvings of a chain have the same.
def abstract_params(network_spec: NetworkSpec, inputs: tuple[str, ...]) -> Tree:
    """Shapes and types of `initial_params`, computed without making any."""
    return jax.eval_shape(lambda key: initial_params(key, network_spec, inputs), jax.random.key(0))


def fresh_adapters(
    key: jax.Array,
    network_spec: NetworkSpec,
    inputs: tuple[str, ...],
    params: Tree,
    rank: int,
    full: tuple[str, ...],
) -> Tree:
    """Adapters of a network with these inputs that change nothing yet; see adapters.new_adapters.

    Raises:
      ValueError: also for a network without layers that adapters can change.
    """
    if network_spec.network.input_axes is None:
        raise ValueError(f"lora is {rank}, and this network has no layers for adapters; take 0")
    axes = network_spec.network.input_axes(params, *network_spec.spec.example(inputs))
    return new_adapters(key, params, axes, rank, full)


@functools.lru_cache(maxsize=64)
def adapter_shapes(
    network_spec: NetworkSpec, inputs: tuple[str, ...], rank: int, full: tuple[str, ...]
) -> Tree:
    """Shapes and types of `fresh_adapters`."""

    def make(key: jax.Array, params: Tree) -> Tree:
        return fresh_adapters(key, network_spec, inputs, params, rank, full)

    return jax.eval_shape(make, jax.random.key(0), abstract_params(network_spec, inputs))


def rounded(params: Tree, dtype: str) -> Tree:
    """Parameters as a network that is not trained keeps them, where they are: in `dtype`.

    Vectors and scalars stay as they are, for they are few: biases, scales of normalisations, and
    frequencies, of which eight bits are too little. "float32" leaves all in the types that they
    are stored in: wider ones would say no more.
    """
    return params if dtype == "float32" else _rounded(params, dtype)


@functools.partial(jax.jit, static_argnames="dtype")
def _rounded(params: Tree, dtype: str) -> Tree:
    """Kernels in the dtype, vectors as they are."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if leaf.ndim > 1 else leaf, params)


def as_tuples(spec: Any) -> Any:
    """JSON lists back to tuples, which are hashable."""
    if isinstance(spec, Mapping):
        return {key: as_tuples(value) for key, value in spec.items()}
    return tuple(as_tuples(value) for value in spec) if isinstance(spec, list) else spec
