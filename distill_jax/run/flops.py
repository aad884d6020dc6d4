"""Counts the floating-point operations of a function in its jaxpr."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

# A trace on EXAMPLES examples tells the costs of every batch: no other size has the factor MARK.
MARK = 1009
EXAMPLES = 8 * MARK


def for_batch(number: int, examples: int | None) -> int:
    """Returns a number of a trace on EXAMPLES examples, such as a size, for another batch.

    Args:
      number: product of sizes; each factor MARK in it is that of a batch.
      examples: number of examples; None for a trace on the batch itself.
    """
    left = number if examples else 0
    while left and left % MARK == 0:
        left //= MARK
        number = number * (examples or 0) // EXAMPLES
    return number


def flops(function: Callable, *args: Any) -> int:
    """Returns the floating-point operations of one call, whose arguments may be abstract.

    A multiply-add is 2. Only matrix products and convolutions count, without products with padding.
    XLA counts in the same way, and so do published figures. A conditional counts as its most
    expensive branch, a loop of unknown length as one iteration. Dead code counts too.
    """
    return flops_of(jax.make_jaxpr(function)(*args).jaxpr)


def flops_of(jaxpr: Any, examples: int | None = None) -> int:
    """Returns the FLOPs of a jaxpr, including the jaxprs inside it; see for_batch."""
    total = 0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            shape = eqn.invars[0].aval.shape
            pairs = eqn.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
            total += for_batch(2 * pairs, examples)
        elif name == "conv_general_dilated":
            total += for_batch(_convolution(eqn), examples)
        else:
            inner = [flops_of(each, examples) for each in inner_jaxprs(eqn)]
            total += params.get("length", 1) * (max(inner) if name == "cond" else sum(inner))
    return total


def inner_jaxprs(eqn: Any) -> Iterator[Any]:
    """Yields the jaxprs inside the parameters of an operation."""
    for value in eqn.params.values():
        for each in value if isinstance(value, (tuple, list)) else (value,):
            each = getattr(each, "jaxpr", each)
            if hasattr(each, "eqns"):
                yield each


def _convolution(eqn: Any) -> int:
    """Returns 2 (images) (channels out) (channels in per group) prod over axes (taps in image)."""
    params, (x, kernel) = eqn.params, (v.aval.shape for v in eqn.invars)
    out, numbers = eqn.outvars[0].aval.shape, params["dimension_numbers"]
    total = 2 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
    for i, (low, _) in enumerate(params["padding"]):
        first = np.arange(out[numbers.out_spec[2 + i]]) * params["window_strides"][i] - low
        taps = np.arange(kernel[numbers.rhs_spec[2 + i]]) * params["rhs_dilation"][i]
        at, holes = first[:, None] + taps, params["lhs_dilation"][i]
        last = (x[numbers.lhs_spec[2 + i]] - 1) * holes
        total *= int(((at >= 0) & (at <= last) & (at % holes == 0)).sum())
    return total
