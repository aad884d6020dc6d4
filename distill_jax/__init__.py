"""Few-step samplers from slow, guided diffusion models.

student = distill_jax.load("runs/digits_guided")
x = student.sample(jax.random.key(0), 16, label=3, w=1.5)
"""

import importlib
from typing import Any

__version__ = "0.1.0"
__all__ = ["Student", "load"]


def __getattr__(name: str) -> Any:
    """`load` and `Student` on first use: importing the package stays quick."""
    if name in __all__:
        return getattr(importlib.import_module("distill_jax.student"), name)
    raise AttributeError(f"module 'distill_jax' has no attribute {name!r}")
