import os
import pathlib
import tempfile

# Programs that tests compile are kept between them, and between runs, in the system's temp folder.
CACHE = pathlib.Path(tempfile.gettempdir()) / "distill_jax_test_compilations"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest


@pytest.fixture
def x64():
    """Float64 for the test: golden values have more digits than float32."""
    with jax.enable_x64(True):
        yield
