"""Tests of the DiT with the names of diffusers: outputs, names, and round trips."""

import importlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from distill_jax.diffusion.spec import image_spec
from distill_jax.models import NETWORKS
from distill_jax.models.dit_files import dit_of, repeated, tied, without_variance
from distill_jax.models.pretrained import stored_params, torch_state
from distill_jax.runtime.registry import build
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from tests.models.diffusers import DIT, DIT_SIZES, LABELS, inputs, weights
from tests.models.test_diffusers import HERE, names_of, tree_of

RECORDED = np.load(HERE / "recorded_dit.npz")
FILE = epath.Path("dit.safetensors")
DESCRIBED = dit_of(DIT, "dit")
CLASSES = DIT["num_embeds_ada_norm"]


def network_of(channels=4, **options):
    """Returns the network of the recorded outputs."""
    model = {**DESCRIBED.model, **options}
    return build(NETWORKS, "network", model, image_spec((8, 8, 4), CLASSES, channels))


def given(number):
    """Returns the arguments of the network."""
    z, k, *_ = inputs(DIT_SIZES[number], 4)
    t = (k + 1) / np.float32(1000)  # Exact in NumPy.
    return jnp.asarray(z), jnp.asarray(t), {"label": jnp.asarray(LABELS[: len(z)])}


def state_of(dtype="float32"):
    """Returns the weights of the recorded outputs."""
    names = json.loads(str(RECORDED["dit_names"]))
    return {key: of_array(weights(key, tuple(shape)).astype(dtype)) for key, shape in names.items()}


def shapes_of(network):
    return jax.eval_shape(network.init, jax.random.key(0), *given(0))


def read(network, state):
    """Returns parameters from the arrays of a checkpoint."""
    params = stored_params(shapes_of(network), tied(state, FILE), FILE, "")
    return jax.tree.map(lambda leaf: jnp.asarray(leaf.read(())), params)


@pytest.fixture(scope="module", autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("number", range(len(DIT_SIZES)))
def test_the_dit_is_that_of_diffusers(number):
    network = network_of()
    params = read(network, without_variance(state_of(), DESCRIBED))
    found = jax.jit(network.apply)(params, *given(number))
    expected = RECORDED[f"dit_{number}"][..., :4]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize(("norm", "epsilon"), [(1e-5, 1e-5), (1e-6, 1e-6)])
def test_the_outputs_depend_on_the_epsilons_of_both_norms(monkeypatch, norm, epsilon):
    module = importlib.import_module("distill_jax.models.diffusers_dit")
    monkeypatch.setattr(module, "NORM", norm)
    network = network_of(epsilon=epsilon)
    params = read(network, without_variance(state_of(), DESCRIBED))
    found, expected = jax.jit(network.apply)(params, *given(2)), RECORDED["dit_2"][..., :4]
    assert np.abs(found - expected).max() > 5e-3 * np.abs(expected).max()


def test_the_full_size_has_the_names_and_shapes_of_diffusers():
    config, expected = tree_of("dit_xl_2_256")
    described, params = dit_of(config, "dit"), {}
    for channels in (8, 4):
        spec = image_spec((32, 32, 4), described.classes, channels)
        network = build(NETWORKS, "network", described.model, spec)
        params[channels] = jax.eval_shape(network.init, jax.random.key(0), *spec.example())
    found = names_of(params[8], lambda state: repeated(state, described.model["blocks"]))
    assert found == expected
    assert sum(math.prod(shape) for shape in found.values()) == 749_826_464
    assert sum(leaf.size for leaf in jax.tree.leaves(params[4])) == 674_816_272


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_are_imported_and_exported_bit_for_bit(tmp_path, dtype):
    file, again = epath.Path(tmp_path / "given.safetensors"), tmp_path / "again.safetensors"
    safetensors.write(file, state_of(dtype))
    params = stored_params(shapes_of(network_of(8)), tied(safetensors.read(file), file), file, "")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(dtype)}
    safetensors.write(again, repeated(torch_state(params), DIT["num_layers"]))
    assert again.read_bytes() == file.read_bytes()


def test_new_weights_of_a_stack_have_the_scale_of_one_layer():
    network = network_of(width=64)
    params = network.init(jax.random.key(0), *given(0))
    kernels = params["transformer_blocks[0:3]"]["ff.net.0.proj"]["kernel"]
    np.testing.assert_allclose(kernels.var(axis=(1, 2)), 1 / 64, rtol=0.1)
    for name in ("norm1.linear", "ff.net.0.proj"):
        assert params["transformer_blocks[0:3]"][name]["kernel"].any() == (name != "norm1.linear")
