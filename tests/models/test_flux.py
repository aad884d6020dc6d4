"""Tests of the transformer of FLUX.1 against diffusers: outputs, names, rotations, guidance."""

import importlib
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from distill_jax.diffusion.schedule import RectifiedFlow
from distill_jax.diffusion.spec import DataSpec, Leaf, Spec
from distill_jax.models import NETWORKS
from distill_jax.models.flux import angles, flux, rotated
from distill_jax.models.flux_files import flux_of
from distill_jax.models.pretrained import stored_params, torch_state
from distill_jax.runtime.registry import build
from distill_jax.storage.weights import of_array
from tests.models.diffusers import FLUXES, SIZES, inputs, mmdit_weights, pooled
from tests.models.test_diffusers import HERE, exact_products, names_of, tree_of  # noqa: F401

RECORDED = np.load(HERE / "recorded_flux.npz")
DESCRIBED = {name: flux_of(config, name) for name, config in FLUXES.items()}


def spec_of(said, length=7, side=8):
    """Returns the spec of latents, and of the texts that a config.json describes."""
    text = ("text", Leaf((length, said.text_width))), ("pooled", Leaf((said.pooled_width,)))
    latents = Leaf((side, side, said.channels))
    return Spec(DataSpec(latents, False, text), said.channels, RectifiedFlow())


def example_of(said, **options):
    """Returns example inputs of a network, with a w if it takes one."""
    return spec_of(said, **options).example(("w",) if said.takes_w else ())


def state_of(name):
    """Returns the arrays of the recorded outputs by their names in PyTorch."""
    names = json.loads(str(RECORDED[f"{name}_names"]))
    return {key: mmdit_weights(key, tuple(shape)) for key, shape in names.items()}


def network(name, **options):
    """Returns a network, and its parameters of the recorded outputs, which are not read yet."""
    said = DESCRIBED[name]
    made = build(NETWORKS, "network", {**said.model, **options}, spec_of(said))
    needed = jax.eval_shape(made.init, jax.random.key(0), *example_of(said))
    state = {key: of_array(leaf) for key, leaf in state_of(name).items()}
    return made, stored_params(needed, state, epath.Path(name), "")


def given(name, number):
    z, k, text, w = inputs(SIZES[number], 4)
    cond = {"text": text, "pooled": pooled(SIZES[number])}
    cond |= {"w": w} if DESCRIBED[name].takes_w else {}
    t = (k + 1) / np.float32(1000)  # Exact in NumPy, but not in XLA.
    return jax.tree.map(jnp.asarray, (z, t, cond))


def error(name, number, **options):
    made, params = network(name, **options)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf.read(())), params)
    expected = RECORDED[f"{name}_{number}"]
    found = jax.jit(made.apply)(params, *given(name, number))
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("number", range(len(SIZES)))
@pytest.mark.parametrize("name", FLUXES)
def test_the_outputs_are_those_of_diffusers(name, number):
    assert error(name, number) < 2e-5


def test_the_outputs_depend_on_the_epsilon_of_the_norms(monkeypatch):
    monkeypatch.setattr(importlib.import_module("distill_jax.models.mmdit"), "NORM", 1e-5)
    assert error("schnell", 0) > 1e-3


def test_the_outputs_depend_on_the_places_of_rows_and_columns(monkeypatch):
    module = importlib.import_module("distill_jax.models.flux")
    monkeypatch.setattr(module, "angles", lambda axes, counts: angles(axes, counts[::-1]))
    assert error("schnell", 1) > 1e-3


def test_rematerialised_blocks_have_the_same_outputs():
    assert error("schnell", 0, remat="full") < 2e-5


@pytest.mark.parametrize("name", FLUXES)
def test_an_export_of_an_import_has_the_same_arrays_bit_for_bit(name):
    _, params = network(name)
    expected, found = state_of(name), torch_state(params)
    assert found.keys() == expected.keys()
    for key, leaf in found.items():
        np.testing.assert_array_equal(leaf.read(()), expected[key], err_msg=key)


def test_products_of_rotated_vectors_depend_on_the_distance_of_their_places():
    """This is the purpose of the rotations: Su et al. (2021), equation 11."""
    q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))

    def turned(x, place):
        table = angles((2, 2, 4), (6, 5)).reshape(6, 5, 1, 4)[place]
        return rotated(x, jnp.stack([jnp.cos(table), jnp.sin(table)]))

    def product(first, second):
        return float((turned(q, first) * turned(k, second)).sum())

    np.testing.assert_allclose(product((1, 2), (3, 1)), product((3, 4), (5, 3)), rtol=1e-5)
    np.testing.assert_allclose(product((4, 4), (4, 4)), float((q * k).sum()), rtol=1e-5)
    assert abs(product((1, 2), (3, 1)) - product((1, 2), (1, 3))) > 1e-2


def test_angles_are_indices_of_rows_and_columns_at_frequencies_of_each_axis():
    # The first axis is 0 everywhere; 4 channels have the frequencies 1 and 1 / 100.
    found = angles((2, 2, 4), (2, 3))
    expected = [(0, row, column, column / 100) for row in range(2) for column in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("name", "count"), [("flux1_dev", 11_901_408_320), ("flux1_schnell", 11_891_178_560)]
)
def test_the_full_sizes_have_the_names_and_shapes_of_diffusers(name, count):
    config, expected = tree_of(name)
    said = flux_of(config, name)
    given = {"length": 512, "side": 128}
    made = build(NETWORKS, "network", said.model, spec_of(said, **given))
    shapes = jax.eval_shape(made.init, jax.random.key(0), *example_of(said, **given))
    assert names_of(shapes) == expected
    assert sum(math.prod(shape) for shape in expected.values()) == count


def test_the_defaults_are_flux_schnell():
    said = flux_of({}, "config.json")
    defaults = flux.fields_of(spec_of(said))
    assert said == flux_of(tree_of("flux1_schnell")[0], "flux1_schnell")
    for key, value in said.model.items():
        assert key == "name" or getattr(defaults, key) == value


def test_new_blocks_learn_at_the_start_because_only_their_gates_are_zero():
    made, shapes = network("dev")
    params = made.init(jax.random.key(0), *example_of(DESCRIBED["dev"]))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)

    def zero(tree):
        return {
            name for name, part in tree.items() if "kernel" in part and not part["kernel"].any()
        }

    assert zero(params["transformer_blocks[0:1]"]) == {"norm1.linear", "norm1_context.linear"}
    assert zero(params["single_transformer_blocks[0:3]"]) == {"norm.linear"}
    guidance = "time_text_embed.guidance_embedder.linear_2"
    assert zero(params) == {"proj_out", "norm_out.linear", guidance}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 2}, "patch_size is 2; only 1 is supported"),
        ({"in_channels": 6}, "in_channels is 6; expected a multiple of 4 from 4"),
        ({"in_channels": 384, "out_channels": 64}, "out_channels is 64; only 384 is supported"),
        ({"axes_dims_rope": [16, 112]}, r"axes_dims_rope is \[16, 112\]; expected a tuple of 3"),
        ({"axes_dims_rope": 16}, "axes_dims_rope is 16; expected a tuple of 3"),
        ({"guidance_embeds": None}, "guidance_embeds is None; expected true or false"),
        ({"num_single_layers": 0}, "num_single_layers is 0; expected a whole number from 1"),
    ],
)
def test_a_config_that_the_network_does_not_have_is_one_message(changes, message):
    with pytest.raises(ValueError, match=f"schnell: {message}"):
        flux_of({**FLUXES["schnell"], **changes}, "schnell")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"axes": (16, 56, 58)}, r"axes are \(16, 56, 58\), 130 channels; .* head_dim = 128"),
        ({"axes": (15, 57, 56)}, r"axes is \(15, 57, 56\); expected a tuple of 3"),
        ({"patch": 3}, "patch 3 does not divide the image of 8x8"),
        ({"head_dim": 5}, "head_dim is 5; expected a multiple of 2"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
    ],
)
def test_options_that_do_not_fit_are_one_message(options, message):
    with pytest.raises(ValueError, match=message):
        flux(spec_of(DESCRIBED["schnell"]), **options)


def test_latents_whose_sides_the_patch_does_not_divide_are_one_message():
    made, params = network("schnell")
    z, t, cond = given("schnell", 0)
    with pytest.raises(ValueError, match="patch 2 does not divide the image of 7x8; expected side"):
        jax.eval_shape(
            made.apply, jax.tree.map(lambda x: jnp.zeros(x.shape), params), z[:, 1:], t, cond
        )
