"""Few-step samplers from slow, guided diffusion models.

student = distill_jax.load("runs/digits_guided")
x = student.sample(jax.random.key(0), 16, label=3, w=1.5)
"""

import importlib
import importlib.util
import sys
from typing import Any

__version__ = "0.1.0"
_EXPORTS = {
    "Student": "distill_jax.sampling.student",
    "load": "distill_jax.sampling.loading",
    "make_layout": "distill_jax.runtime.sharding",
}
__all__ = sorted(_EXPORTS)

# A command that starts in a Python without the requirements, such as a shell without .venv.
if sys.argv[:1] == ["-m"] and importlib.util.find_spec("jax") is None:
    sys.exit(
        f"error: {sys.executable} has no jax; activate the environment of the installation "
        "(. .venv/bin/activate), or install the package: pip install -e ."
    )


def __getattr__(name: str) -> Any:
    """Imports an exported name on first use, so that importing the package stays quick."""
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'distill_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Returns the exported names too, so that completion lists them before they are imported."""
    return sorted({*globals(), *__all__})
