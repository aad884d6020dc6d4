"""What importing the package costs, in a fresh interpreter."""

import json
import subprocess
import sys

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
