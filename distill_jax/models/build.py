"""Builds networks from the `model`, `schedule` and `parameterization` of a config or manifest."""

import contextlib
import functools
import json
from collections.abc import Container, Mapping
from typing import Any

import jax

from distill_jax.diffusion.denoiser import Network, NetworkSpec
from distill_jax.diffusion.inpainting import with_inpainting
from distill_jax.diffusion.prediction import PARAMETERIZATIONS, check_head
from distill_jax.diffusion.schedule import SCHEDULES, Schedule
from distill_jax.diffusion.spec import INPAINT, DataSpec, Spec
from distill_jax.models import INPAINTING_NETWORKS, NETWORKS, TEXT_NETWORKS
from distill_jax.models.adapters import new_adapters
from distill_jax.runtime.options import within
from distill_jax.runtime.registry import EVERYTHING, build, check_allowed, lookup
from distill_jax.runtime.trees import is_vector, name_of
from distill_jax.typing import Tree


def make_network(
    described: Mapping[str, Any], data: DataSpec, allow: Container[str] = ()
) -> NetworkSpec:
    """Returns the NetworkSpec of a config or manifest; equal descriptions give the same object.

    Args:
      described: mapping with "model", "schedule" and "parameterization", in any order.
      data: images and conditions of the network.
      allow: names of models and schedules that may be imported, see registry.lookup.

    Raises:
      KeyError: for an unknown name.
      ValueError: for a parameterization that does not fit the schedule or the network, and for a
        name that is not in `allow`, even if it was imported before.
    """
    check_allowed((described[key].get("name") for key in ("model", "schedule")), allow)
    names = ("model", "schedule", "parameterization")
    text = json.dumps({name: described[name] for name in names}, sort_keys=True)
    return _make_network(text, data)


@functools.lru_cache(maxsize=64)
def _make_network(text: str, data: DataSpec) -> NetworkSpec:
    """Returns make_network of a description in JSON; cached by that text."""
    described = as_tuples(json.loads(text))
    name = described["parameterization"]
    parameterization = lookup(PARAMETERIZATIONS, "parameterization", name)
    with within("schedule"):
        given = described["schedule"]
        schedule = build(SCHEDULES, "schedule", given, allow=EVERYTHING, makes=Schedule)
    check_head(name, schedule)
    spec = Spec(data, parameterization.channels * data.x.shape[-1], schedule)
    with within("model"):
        given = described["model"]
        network = build(NETWORKS, "network", given, spec, allow=EVERYTHING, makes=Network)
    kind = described["model"]["name"]
    if "text" in dict(data.cond) and kind in NETWORKS and kind not in TEXT_NETWORKS:
        raise ValueError(
            f"model is {kind!r}, which takes no text; take {', '.join(TEXT_NETWORKS)} for captions"
        )
    if INPAINT in dict(data.cond):
        _check_inpainting(kind, data)
    if network.parameterizations and name not in network.parameterizations:
        raise ValueError(
            f"parameterization is {name!r}; network {described['model']['name']!r} predicts "
            f"{', '.join(network.parameterizations)} only"
        )
    return NetworkSpec(network, parameterization, spec)


def _check_inpainting(kind: str, data: DataSpec) -> None:
    """Raises ValueError for a network that reads no INPAINT, and for one of another shape."""
    if kind in NETWORKS and kind not in INPAINTING_NETWORKS:
        raise ValueError(
            f"model is {kind!r}, which takes no masked image; take "
            f"{', '.join(INPAINTING_NETWORKS)}, or leave config.masks out"
        )
    mine, fits = (dict(each.cond)[INPAINT].shape for each in (data, with_inpainting(data)))
    if mine != fits:
        raise ValueError(
            f"channels beside the {data.x.shape[-1]} of x: {mine[-1]}; expected {fits[-1]}, a mask "
            "and a masked x: networks of depth and others are not supported"
        )


def matmul_precision(name: str) -> contextlib.AbstractContextManager:
    """Returns a context that sets the precision of float32 matrix products and convolutions.

    "default" changes nothing: the device or JAX_DEFAULT_MATMUL_PRECISION decides.
    """
    if name == "default":
        return contextlib.nullcontext()
    return jax.default_matmul_precision(name)


def initial_params(key: jax.Array, network_spec: NetworkSpec, inputs: tuple[str, ...]) -> Tree:
    """Returns fresh parameters of a network; `inputs` are those other than z, t and label."""
    return network_spec.network.init(key, *network_spec.spec.example(inputs))


@functools.lru_cache(maxsize=64)  # All halvings of a chain share an entry.
def abstract_params(network_spec: NetworkSpec, inputs: tuple[str, ...]) -> Tree:
    """Returns the shapes and types of `initial_params` without computing the parameters."""
    return jax.eval_shape(lambda key: initial_params(key, network_spec, inputs), jax.random.key(0))


def fresh_adapters(
    key: jax.Array,
    network_spec: NetworkSpec,
    inputs: tuple[str, ...],
    params: Tree,
    rank: int,
    full: tuple[str, ...],
) -> Tree:
    """Returns new adapters of a network, which change nothing yet; see adapters.new_adapters.

    Raises:
      ValueError: as new_adapters, and for a network without layers that adapters can change.
    """
    if network_spec.network.input_axes is None:
        raise ValueError(f"lora is {rank}, and this network has no layers for adapters; take 0")
    axes = network_spec.network.input_axes(params, *network_spec.spec.example(inputs))
    return new_adapters(key, params, axes, rank, full)


@functools.lru_cache(maxsize=64)
def adapter_shapes(
    network_spec: NetworkSpec, inputs: tuple[str, ...], rank: int, full: tuple[str, ...]
) -> Tree:
    """Returns the shapes and types of `fresh_adapters`."""

    def make(key: jax.Array, params: Tree) -> Tree:
        return fresh_adapters(key, network_spec, inputs, params, rank, full)

    return jax.eval_shape(make, jax.random.key(0), abstract_params(network_spec, inputs))


def rounded(params: Tree, dtype: str) -> Tree:
    """Casts the matrices in the parameters of a frozen network to `dtype`, in their sharding.

    Vectors and scalars keep their type: biases, scales of normalisations, and frequencies, for
    which bfloat16 is too coarse. They are few. "float32" keeps the stored type of all parameters,
    because wider types add no precision.
    """
    return params if dtype == "float32" else _rounded(params, dtype)


@functools.partial(jax.jit, static_argnames="dtype")
def _rounded(params: Tree, dtype: str) -> Tree:
    """Casts kernels to the dtype; vectors stay."""

    def kept(path: tuple, leaf: jax.Array) -> jax.Array:
        return leaf if is_vector(name_of(path), leaf) else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(kept, params)


def as_tuples(spec: Any) -> Any:
    """Converts lists, as in JSON, to hashable tuples."""
    if isinstance(spec, Mapping):
        return {key: as_tuples(value) for key, value in spec.items()}
    return tuple(as_tuples(value) for value in spec) if isinstance(spec, list) else spec
