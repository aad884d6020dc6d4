"""Tests that code outside checks reads every option of methods, networks, data and schedules."""

import ast
import dataclasses
import functools
import inspect
import pathlib
import sys
import textwrap

import pytest

from distill_jax.data import DATASETS
from distill_jax.data.masks import MASKS
from distill_jax.diffusion.schedule import SCHEDULES
from distill_jax.methods import METHODS
from distill_jax.models import NETWORKS
from distill_jax.run import plan
from distill_jax.training.update import optimizer

TABLES = {
    "method": METHODS,
    "network": NETWORKS,
    "dataset": DATASETS,
    "masks": MASKS,
    "schedule": SCHEDULES,
    "optimizer": {"adam": inspect.unwrap(optimizer)},
}
ENTRIES = [
    pytest.param(kind, entry, id=f"{kind} {name}")
    for kind, table in TABLES.items()
    for name, entry in table.items()
]


class WithoutChecks(ast.NodeTransformer):
    """Removes the checks of values: functions and calls named check, and `if: raise`."""

    def visit_If(self, node):  # noqa: N802 - ast's name.
        refuses = isinstance(node.body[-1], ast.Raise) and not node.orelse
        return None if refuses else self.generic_visit(node)

    def visit_FunctionDef(self, node):  # noqa: N802 - ast's name.
        return None if "check" in node.name else self.generic_visit(node)

    def visit_Expr(self, node):  # noqa: N802 - ast's name.
        called = ast.unparse(node.value.func) if isinstance(node.value, ast.Call) else ""
        return None if "check" in called else node


@functools.cache
def nodes(text):
    """Yields the AST nodes of a source without its checks."""
    return list(ast.walk(WithoutChecks().visit(ast.parse(textwrap.dedent(text)))))


def names(text):
    """Returns the variables that are read."""
    return {node.id for node in nodes(text) if isinstance(node, ast.Name) and load(node)}


def attributes(text, owners):
    """Returns attributes that are read from one of these names, such as self.arch.width."""
    return {
        node.attr
        for node in nodes(text)
        if isinstance(node, ast.Attribute)
        and load(node)
        and ast.unparse(node.value).rpartition(".")[2] in owners
    }


def load(node):
    return isinstance(node.ctx, ast.Load)


def read(kind, entry):
    """Returns the options that the code of an entry reads."""
    if inspect.isfunction(entry) and not hasattr(entry, "__signature__"):
        return names(inspect.getsource(entry).removeprefix("@functools.cache\n"))
    described = [entry] if inspect.isclass(entry) else architectures(entry)
    classes = bases(described)
    found = {name for each in classes for name in attributes(inspect.getsource(each), {"self"})}
    if kind == "network":  # Modules keep their options in the attribute `arch`.
        own = [
            each for each in vars(sys.modules[entry.__module__]).values() if inspect.isclass(each)
        ]
        own = bases(each for each in own if each.__module__ == entry.__module__)
        files = {pathlib.Path(inspect.getsourcefile(each)) for each in own}
        found.update(*(attributes(file.read_text(), {"arch"}) for file in files))
    if kind == "method":  # The plan reads the options of discriminators and trained roles.
        found |= attributes(inspect.getsource(plan), {"method"})
    return found


def bases(classes):
    """Returns classes, and those of the package that they inherit from."""
    return [each for kind in classes for each in kind.__mro__ if "distill_jax" in each.__module__]


def architectures(function):
    """Returns the dataclass whose attributes are the options of a network's function."""
    module = vars(sys.modules[function.__module__]).values()
    known = [kind for kind in module if inspect.isclass(kind) and dataclasses.is_dataclass(kind)]
    return [kind for kind in known if inspect.signature(kind) == function.__signature__]


@pytest.mark.parametrize(("kind", "entry"), ENTRIES)
def test_every_option_is_used(kind, entry):
    unused = set(inspect.signature(entry).parameters) - {"spec"} - read(kind, entry)
    assert not unused


def test_an_option_that_is_only_checked_is_not_used():
    text = "def f(self, a, b, c):\n check_a(a)\n if b < 0:\n  raise ValueError(b)\n return c"
    assert names(text) == {"c"}
    text = "class F:\n def check(self):\n  return self.a\n def g(self):\n  return self.arch.b"
    assert attributes(text, {"self", "arch"}) == {"arch", "b"}
