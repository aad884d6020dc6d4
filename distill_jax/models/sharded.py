"""All-gathers of sharded weights layer by layer, inside the call of each layer."""

import contextlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Network
from distill_jax.runtime.sharding import Layout
from distill_jax.runtime.trees import STACK
from distill_jax.typing import Tree

NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.Embed, *NORMS)


class Sharded(NamedTuple):
    """Sharded parameters of a network, whose layers gather them one by one.

    Attributes:
      params: a tree of arrays, or adapters.Adapted.
      layout: layout of the parameters.
      in_turn: whether the gradient of a layer is summed over devices before the backward pass
        continues with the previous layer. Otherwise compilers postpone these sums, and a device
        has the whole gradients of many layers. It takes time: no computation hides the sum.
    """

    params: Any
    layout: Layout
    in_turn: bool = False


def gathering(layout: Layout | None, in_turn: bool = False) -> contextlib.AbstractContextManager:
    """Returns a context where every called layer casts its weights to its dtype and gathers them.

    A rematerialised block therefore gathers its weights again in the backward pass, and a scan over
    blocks has the weights of one block in memory (ZeRO-3, Rajbhandari et al. 2020,
    arXiv:1910.02054, section 5.3). The partitioner handles weights that belong to no layer.

    Args:
      layout: layout of the parameters; None for unsharded parameters.
      in_turn: whether gradients are summed layer by layer, see Sharded.
    """
    if layout is None:
        return contextlib.nullcontext()

    def layer(
        following: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext
    ) -> Any:
        own = context.module
        if context.method_name != "__call__" or not isinstance(own, LAYERS) or not own.path:
            return following(*args, **kwargs)
        # Normalisations multiply by their scale in float32 for every output dtype.
        dtype = None if isinstance(own, NORMS) else own.dtype
        x, params = args[0], own.variables.get("params", {})
        if in_turn and jnp.issubdtype(x.dtype, jnp.floating):
            x, params = _summed_first(x, params)
        params = gathered(layout, own, params, dtype)
        return own.clone(parent=None, name=None).apply({"params": params}, x, *args[1:], **kwargs)

    return nn.intercept_methods(layer)


def gathered(layout: Layout, layer: nn.Module, tree: Tree, dtype: Any = None) -> Tree:
    """Casts and gathers the variables of a bound layer; see Layout.gather."""
    name = STACK.sub("", "/".join(layer.path))  # Inside a scan they belong to one layer.
    return layout.gather({name: tree}, dtype)[name]


@jax.custom_vjp
def _summed_first(x: jax.Array, params: Tree) -> tuple[jax.Array, Tree]:
    """Returns both; the gradient of x waits for the gradient of the parameters."""
    return x, params


def _summed_first_forward(x: jax.Array, params: Tree) -> tuple[tuple[jax.Array, Tree], None]:
    """Returns both, and no residuals for the backward pass."""
    return (x, params), None


def _summed_first_backward(_: None, gradients: tuple[jax.Array, Tree]) -> tuple[jax.Array, Tree]:
    """Returns both gradients behind an optimization barrier."""
    return jax.lax.optimization_barrier(gradients)


_summed_first.defvjp(_summed_first_forward, _summed_first_backward)


def as_called(params: Tree, layout: Layout | None, network: Network | None) -> Tree | Sharded:
    """Returns parameters in the form in which a network takes them inside a compiled program.

    Args:
      params: parameters with the shardings of the layout.
      layout: layout of the parameters; None for unsharded parameters.
      network: network, whose layers may gather their weights; None for a head, whose layers do not.
    """
    if layout is None or layout.mesh.shape["fsdp"] == 1:
        return params
    if network is None or not network.per_layer:
        return layout.gather(params)
    return Sharded(params, layout, network.in_turn)
