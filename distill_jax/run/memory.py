"""Estimates the bytes of a traced function's intermediate results, without compilation."""

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import jax
from jax.extend.core import Literal

from distill_jax.run.flops import for_batch, inner_jaxprs

LOOPS = ("scan", "while")
# Operations that only rename or repeat their inputs, which takes no memory,
VIEWS = {"broadcast_in_dim", "copy", "expand_dims", "iota", "reshape", "squeeze", "transpose"}
# and elementwise operations, which compilers fuse with the only operation that uses their result.
ELEMENTWISE = {"add", "add_any", "and", "convert_element_type", "cos", "div", "eq", "erf", "exp"}
ELEMENTWISE |= {"ge", "gt", "integer_pow", "le", "log", "log1p", "logistic", "lt", "max", "min"}
ELEMENTWISE |= {"mul", "ne", "neg", "not", "or", "pow", "rsqrt", "select_n", "sign", "sin", "sqrt"}
ELEMENTWISE |= {"square", "stop_gradient", "sub", "tanh"}


def peak_bytes(jaxpr: Any, examples: int | None = None) -> int:
    """Returns the peak of the bytes of a jaxpr's live results, without its arguments.

    Operations run in the order of the trace, and each result lives until its last use. Compilers
    reorder operations and recompute some, so that a program may take less. For `examples` see
    flops.for_batch.
    """

    def size_of(variables: Iterable[Any]) -> int:
        return sum(for_batch(_size(var), examples) for var in variables)

    uses = Counter(var for eqn in jaxpr.eqns for var in _variables(eqn.invars))
    uses.update(_variables(jaxpr.outvars))
    held: dict[Any, set] = {}  # For each result, the arrays in memory that it is computed from.
    last: dict[Any, int] = {}  # For each array in memory, the operation of its last use.
    made: list[list] = []  # For each operation, the arrays that it writes to memory.
    for i, eqn in enumerate(jaxpr.eqns):
        sources = _sources(eqn.invars, held)
        last.update(dict.fromkeys(sources, i))
        name, result = eqn.primitive.name, eqn.outvars[0] if eqn.outvars else None
        if name in VIEWS or (name in ELEMENTWISE and uses[result] == 1):
            held[result] = sources
            made.append([])
        else:
            made.append([var for var in eqn.outvars if uses[var]])
    last.update(dict.fromkeys(_sources(jaxpr.outvars, held), len(jaxpr.eqns)))

    ends: dict[int, int] = {}
    for i, new in enumerate(made):
        for var in new:
            ends[last.get(var, i)] = ends.get(last.get(var, i), 0) + size_of([var])
    alive = most = 0
    for i, (eqn, new) in enumerate(zip(jaxpr.eqns, made, strict=True)):
        size = size_of(new)
        inner = max((peak_bytes(each, examples) for each in inner_jaxprs(eqn)), default=0)
        most = max(
            most, alive + (size + inner if eqn.primitive.name in LOOPS else max(size, inner))
        )
        alive += size - ends.get(i, 0)
    return most


def _sources(atoms: Iterable[Any], held: dict[Any, set]) -> set:
    """Returns the arrays in memory that hold these values, or that they are computed from."""
    return set().union(*(held.get(var, {var}) for var in _variables(atoms)))


def _variables(atoms: Iterable[Any]) -> Iterator[Any]:
    """Yields the variables among arguments or results, without literals."""
    return (atom for atom in atoms if not isinstance(atom, Literal))


def _size(var: Any) -> int:
    """Returns the bytes of a variable's array."""
    key = jax.dtypes.issubdtype(var.aval.dtype, jax.dtypes.extended)
    return var.aval.size * (8 if key else var.aval.dtype.itemsize)
