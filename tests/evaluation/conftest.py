import numpy as np
import pytest

from distill_jax.evaluation import feature_networks
from tests.evaluation.small import SMALL, state_of


@pytest.fixture(scope="package")
def small_file(tmp_path_factory):
    """Adds the feature network "small", and returns the file of its random weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(feature_networks.KINDS, "small", SMALL)
        file = tmp_path_factory.mktemp("weights") / "small.npz"
        np.savez(file, **state_of("small"))
        patch.setenv("DISTILL_JAX_FEATURES", str(file.parent))
        patch.setenv("XDG_CACHE_HOME", str(file.parent))  # Else features go to the user's cache.
        yield file
