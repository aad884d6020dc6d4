"""Low-rank adapters (LoRA) of frozen weights.

Hu et al. (2021), LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685. The scale
alpha / r of their section 4.1 is 1, because it only changes the learning rate of b.
"""

import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.models.sharded import Sharded, gathered, gathering
from distill_jax.runtime.trees import by_name, insert, is_stacked, name_of
from distill_jax.typing import Tree

Context = nn.module.InterceptorContext
LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.Embed)


class Adapted(NamedTuple):
    """Parameters of a network with frozen weights and trained adapters.

    Attributes:
      weights: weights of the network, nested dicts, except modules that `adapters` has in full.
      adapters: adapters of the weights, see new_adapters.
    """

    weights: Tree
    adapters: Tree


def call(module: nn.Module, params: Tree | Adapted | Sharded, *args: Any, **options: Any) -> Any:
    """Calls module.apply with parameters that may be adapted or sharded.

    A layer with an adapter (a, b) returns y + (x a) b, where y is the output with its frozen
    weights; W + a b is never computed. Layers gather Sharded parameters, see sharded.gathering.
    """
    params, layout, in_turn = params if isinstance(params, Sharded) else (params, None, False)
    if not isinstance(params, Adapted):
        with gathering(layout, in_turn):
            return module.apply({"params": params}, *args, **options)
    pairs, full = _split(params)
    variables = {"params": full, "adapters": {}}
    for name, pair in pairs.items():
        insert(variables["adapters"], name, dict(zip(("lora_a", "lora_b"), pair, strict=True)))

    def layer(following: Callable, args: tuple, kwargs: dict, context: Context) -> Any:
        y, own = following(*args, **kwargs), context.module
        if context.method_name != "__call__" or _kernel(own) not in pairs:
            return y
        kernel = "embedding" if isinstance(own, nn.Embed) else "kernel"
        pair: Any = own.get_variable("adapters", kernel)
        if layout is not None:
            pair = gathered(layout, own, {kernel: pair})[kernel]
        plain = {} if isinstance(own, nn.Embed) else {"use_bias": False}
        thin = own.clone(features=pair["lora_a"].shape[-1], parent=None, name=None, **plain)
        h: Any = thin.apply({"params": {kernel: pair["lora_a"]}}, *args, **kwargs)
        precision = getattr(own, "precision", None)
        change = jnp.dot(h, pair["lora_b"].astype(h.dtype), precision=precision)
        return y + change.reshape(y.shape)

    # The last one is the innermost. Frozen weights have no gradients to sum in turn.
    with nn.intercept_methods(layer), gathering(layout):
        return module.apply(variables, *args, **options)


def input_axes(module: nn.Module, params: Tree, *args: Any) -> dict[str, int]:
    """Returns the number of leading input axes by name, for every kernel that can have adapters.

    The function only uses shapes. Grouped convolutions and masked kernels are left out.

    Args:
      module: the network.
      params: parameters of the network, or their shapes.
      *args: other arguments of the network.
    """
    found: dict[str, int] = {}

    def layer(following: Callable, args: tuple, kwargs: dict, context: Context) -> Any:
        if context.method_name == "__call__" and _kernel(context.module):
            found[_kernel(context.module)] = _input_axes(context.module)
        return following(*args, **kwargs)

    with nn.intercept_methods(layer):
        jax.eval_shape(lambda params: module.apply({"params": params}, *args), params)
    return {name: axes for name, axes in found.items() if axes}


def new_adapters(
    key: jax.Array,
    params: Tree,
    axes: Mapping[str, int],
    rank: int,
    full: Collection[str] = (),
) -> Tree:
    """Returns new adapters, with which the network does not change yet.

    A kernel of a dense layer, convolution or embedding is replaced by the pair
    {"lora_a": (*inputs, rank) ~ N(0, 1 / inputs), "lora_b": (rank, outputs) = 0}
    if the pair has fewer numbers. For stacked layers the layers are the leading axis of both.
    Biases, scales and smaller kernels have no adapters. The paths of a pair begin with the path of
    its kernel, so that the sharding rule of that path applies to both.

    Args:
      key: PRNG key.
      params: parameters of the network, nested dicts.
      axes: result of input_axes.
      rank: rank of the adapters, from 1.
      full: names of modules, anywhere on a path, that are trained in full; the result has their
        leaves.

    Returns:
      Nested dicts like `params`, without the leaves that have no adapters.

    Raises:
      ValueError: when the rank is below 1, or too large for every kernel.
    """
    if rank < 1:
        raise ValueError(f"lora rank is {rank}; expected a whole number from 1, such as 16")
    leaves = by_name(params)
    shapes = {name: leaf.shape[is_stacked(name) :] for name, leaf in leaves.items()}
    largest = {name: _largest_rank(shapes[name], count) for name, count in axes.items()}
    if rank > max(largest.values(), default=0):
        raise ValueError(
            f"lora rank is {rank}, which saves nothing in any kernel of this network; expected at "
            f"most {max(largest.values(), default=0)}, or train it in full"
        )
    adapters: dict = {}
    for index, (name, leaf) in enumerate(leaves.items()):
        if not set(name.split("/")).isdisjoint(full):
            insert(adapters, name, leaf)
        elif rank <= largest.get(name, 0):
            layers, shape = leaf.shape[: is_stacked(name)], shapes[name]
            inputs, outputs = shape[: axes[name]], shape[axes[name] :]
            key_a = jax.random.fold_in(key, index)
            a = jax.random.normal(key_a, (*layers, *inputs, rank), leaf.dtype)
            b = jnp.zeros((*layers, rank, math.prod(outputs)), leaf.dtype)
            insert(adapters, name, {"lora_a": a / math.sqrt(math.prod(inputs)), "lora_b": b})
    return adapters


def merged(params: Tree | Adapted) -> Tree:
    """Returns plain parameters: W + a b for every pair, and the leaves that are trained in full."""
    if not isinstance(params, Adapted):
        return params
    pairs, full = _split(params)

    # Parameters are float32, so the product is too, for any default of the device.
    product = functools.partial(jnp.tensordot, axes=1, precision="highest")

    def change(path: tuple, leaf: jax.Array) -> jax.Array:
        name = name_of(path)
        if name not in pairs:
            return leaf
        of_all = jax.vmap(product) if is_stacked(name) else product
        return leaf + of_all(*pairs[name]).reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(change, full)


def _split(params: Adapted) -> tuple[dict[str, tuple[jax.Array, jax.Array]], Tree]:
    """Returns (a, b) by the name of their kernel, and the weights with the modules in full."""
    given = by_name(params.adapters)
    kernels = [name.removesuffix("/lora_a") for name in given if name.endswith("/lora_a")]
    pairs = {name: (given.pop(f"{name}/lora_a"), given.pop(f"{name}/lora_b")) for name in kernels}
    full: dict = {}
    for name, leaf in {**by_name(params.weights), **given}.items():
        insert(full, name, leaf)
    return pairs, full


def _kernel(layer: nn.Module) -> str:
    """Returns the name of a layer's kernel among the parameters; "" for layers without one."""
    if not isinstance(layer, LAYERS):
        return ""
    return "/".join((*layer.path, "embedding" if isinstance(layer, nn.Embed) else "kernel"))


def _input_axes(layer: nn.Module) -> int:
    """Returns the number of leading input axes of a layer's kernel; 0 for other kinds."""
    if isinstance(layer, nn.DenseGeneral):
        return 0 if layer.batch_dims else len(jnp.atleast_1d(jnp.asarray(layer.axis)))
    if isinstance(layer, nn.Conv):
        plain = layer.feature_group_count == 1 and layer.mask is None
        return len(layer.kernel_size) + 1 if plain else 0  # type: ignore[arg-type]  # No int here.
    return 1


def _largest_rank(shape: tuple[int, ...], axes: int) -> int:
    """Returns the largest rank whose pair has fewer numbers than the kernel."""
    m, n = math.prod(shape[:axes]), math.prod(shape[axes:])
    return (m * n - 1) // (m + n)
