import numpy as np
import pytest

from distill_jax.evaluation import feature_networks
from distill_jax.evaluation.feature_networks import Kind
from tests.evaluation.small import Small, state_of


@pytest.fixture(scope="package")
def small_file(tmp_path_factory):
    """Adds the feature network "small", and returns the file of its random weights."""
    with pytest.MonkeyPatch.context() as patch:
        kind = Kind(Small, 24, "bicubic", 128.0, ("small.npz",), "take another")
        patch.setitem(feature_networks.KINDS, "small", kind)
        file = tmp_path_factory.mktemp("weights") / "small.npz"
        np.savez(file, **state_of("small"))
        patch.setenv("DISTILL_JAX_FEATURES", str(file.parent))
        yield file
