"""Tests of the modules that an import of the package loads, in a fresh interpreter."""

import json
import subprocess
import sys

import distill_jax
from distill_jax.__main__ import COMMANDS
from tests.toys import ROOT


def modules_after(statement):
    code = f"import json, sys; {statement}; print(json.dumps(sorted(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_importing_the_package_loads_no_heavy_library():
    assert not modules_after("import distill_jax") & {"jax", "flax", "orbax", "sklearn"}


def test_the_program_loads_neither_tensorflow_nor_torch():
    loaded = modules_after("import distill_jax.main, distill_jax.sample, distill_jax.evaluate")
    assert "jax" in loaded
    assert not loaded & {"tensorflow", "torch"}


def test_what_documents_use_is_exported_and_completed():
    assert {"Student", "load", "make_layout"} <= {*distill_jax.__all__, *dir(distill_jax)}
    assert all(callable(getattr(distill_jax, name)) for name in distill_jax.__all__)


def test_the_package_lists_its_commands():
    command = [sys.executable, "-m", "distill_jax"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [line.split()[0] for line in shown.splitlines()[2:]]
    assert names == [*COMMANDS]
    commands = {path.stem for path in (ROOT / "distill_jax").glob("*.py")} - {"typing", "config"}
    assert {name for name in commands if not name.startswith("__")} | {"teachers"} == {*COMMANDS}
