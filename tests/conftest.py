import os
import pathlib
import tempfile
from importlib.metadata import version

# The compilation cache of all tests, which stays in the system's temp folder between runs.
CACHE = pathlib.Path(tempfile.gettempdir()) / "distill_jax_test_compilations"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation is most of the tests' time; without LLVM's optimizations it takes a fifth.
# JAX_DISABLE_MOST_OPTIMIZATIONS=0 compiles as for users.
UNOPTIMIZED = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
if UNOPTIMIZED and version("jaxlib").startswith(("0.8.", "0.9.", "0.10.")):  # 0.12 lacks it.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"--xla_cpu_use_fusion_emitters=false {flags}".strip()

import jax
import pytest
from etils import epath

from tests.browser import chromium, open_page

__all__ = ["chromium", "open_page"]  # Fixtures of all tests.


def pytest_addoption(parser):
    parser.addoption("--all", action="store_true", help="run every config at its smoke size")


def pytest_collection_modifyitems(items):
    """Orders the longest files first, so that both processes end at about the same time."""
    longest = ("test_smoke.py", "test_chain.py")
    items.sort(key=lambda item: item.path.name not in longest)


@pytest.fixture(autouse=True, scope="module")
def forget_programs():
    """Clears compiled programs after a module: each is a memory map, and XLA crashes at 65,530."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 20_000:
        jax.clear_caches()


@pytest.fixture(scope="module")
def optimized():
    """Compiles with optimizations, for tests that run longer than they compile."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", UNOPTIMIZED)


@pytest.fixture
def x64():
    """Enables float64, because golden values have more digits than float32."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """Returns the workdir of a finished digits chain at smoke size, with its report."""
    from distill_jax.evaluation import compare
    from distill_jax.run import pipeline, plan
    from tests.toys import smoke_config

    workdir = epath.Path(tmp_path_factory.mktemp("chain") / "digits")
    run = plan.make(smoke_config(), workdir)
    assert pipeline.run(run, stop=lambda: False)
    data, settings = run.config.data.to_dict(), run.config.evaluate.to_dict()
    assert compare.write_report(workdir, data, settings, lambda: False)
    return workdir
