"""Foreign checkpoints by format: (path, config or None) -> Imported. No PyTorch, no TensorFlow."""

from distill_jax.teachers import google_research
from distill_jax.teachers.base import Imported

TEACHERS = {
    "google_research": google_research.read,
}

__all__ = ["TEACHERS", "Imported"]
