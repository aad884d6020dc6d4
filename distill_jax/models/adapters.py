"""Low-rank adapters: few numbers that change many frozen ones.

Hu et al. (2021), LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685.
"""

import math
from collections.abc import Collection, Mapping

import jax
import jax.numpy as jnp

from distill_jax.runtime.trees import name_of
from distill_jax.typing import Tree


def new_adapters(key: jax.Array, params: Tree, rank: int, new: Collection[str] = ()) -> Tree:
    """Adapters that change nothing yet: `merge(params, adapters)` is params.

    Every kernel (dense layers, attention, convolutions) for which it saves numbers gets a pair,
    a (m, rank) ~ N(0, 1 / m) and b (rank, n) = 0, which stand in its place as {"a": a, "b": b}.
    Biases, scales, embedding tables and smaller kernels get none. Modules named in `new` are
    trained in full: their leaves stand there themselves. The paths of a pair begin with the path of
    its kernel, which matters to sharding rules: one for that path is applied to a and b as well.

    Args:
      key: PRNG key.
      params: of the network, nested dicts.
      rank: of the changes, from 1.
      new: names of modules, anywhere on a path, as of train.graft.

    Returns:
      Nested dicts as `params`, without what gets no adapter.

    Raises:
      ValueError: when the rank is below 1, or too large for every kernel.
    """
    if rank < 1:
        raise ValueError(f"lora rank is {rank}; expected a whole number from 1, such as 16")
    leaves = {tuple(_names(path)): leaf for path, leaf in jax.tree.leaves_with_path(params)}
    largest = max(_largest_rank(names, leaf) for names, leaf in leaves.items())
    if rank > largest:
        raise ValueError(
            f"lora rank is {rank}, which saves nothing in any kernel of this network; expected at "
            f"most {largest}, or train it in full"
        )
    adapters: dict = {}
    for index, (names, leaf) in enumerate(leaves.items()):
        if not set(names).isdisjoint(new):
            _insert(adapters, names, leaf)
        elif rank <= _largest_rank(names, leaf):
            _insert(adapters, names, _pair(jax.random.fold_in(key, index), leaf, rank))
    return adapters


def merge(params: Tree, adapters: Tree) -> Tree:
    """The parameters with their changes: W + a b, and the leaves that are trained in full.

    The scale alpha / r of Hu et al. (section 4.1) is 1: it is a learning rate of b by another name.

    Args:
      params: what `adapters` were made for.
      adapters: of `new_adapters`.
    """
    if not isinstance(params, Mapping):
        if not isinstance(adapters, Mapping):
            return adapters
        # Parameters are float32, whatever the device's default for products is.
        change = jnp.matmul(adapters["a"], adapters["b"], precision="highest")
        return params + change.reshape(params.shape)
    assert adapters.keys() <= params.keys()
    return {
        name: merge(value, adapters[name]) if name in adapters else value
        for name, value in params.items()
    }


def _pair(key: jax.Array, kernel: jax.Array, rank: int) -> dict[str, jax.Array]:
    m, n = _sides(kernel.shape)
    a = jax.random.normal(key, (m, rank), kernel.dtype) / math.sqrt(m)
    return {"a": a, "b": jnp.zeros((rank, n), kernel.dtype)}


def _sides(shape: tuple[int, ...]) -> tuple[int, int]:
    """A kernel as a matrix (m, n): its axes are split where the larger side is smallest.

    Of two equal splits the first. That is where a rank costs least, and without any knowledge of
    the layer it parts inputs from outputs: (kh, kw, in | out) for a convolution of at least 9
    channels, (in | 3, heads, dim) and (heads, dim | out) for the projections of attention.
    """
    splits = [(math.prod(shape[:k]), math.prod(shape[k:])) for k in range(1, len(shape))]
    return min(splits, key=max)


def _largest_rank(names: tuple[str, ...], leaf: jax.Array) -> int:
    """The largest rank whose pair has fewer numbers than the kernel; 0 for what is none."""
    if names[-1] != "kernel" or len(leaf.shape) < 2:
        return 0
    m, n = _sides(leaf.shape)
    return (m * n - 1) // (m + n)


def _names(path: tuple) -> list[str]:
    return name_of(path).split("/")


def _insert(tree: dict, names: tuple[str, ...], leaf: Tree) -> None:
    *parents, last = names
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = leaf
