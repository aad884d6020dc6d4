"""Tests of the transformer of Stable Diffusion 3 against diffusers: outputs, names, positions."""

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
from distill_jax.models.mmdit import Architecture, mmdit, positions
from distill_jax.models.mmdit_files import BUFFER, mmdit_of
from distill_jax.models.pretrained import stored_params, torch_state
from distill_jax.runtime.registry import build
from distill_jax.storage.weights import of_array
from tests.models.diffusers import MMDITS, SIZES, inputs, mmdit_weights, pooled
from tests.models.test_diffusers import HERE, names_of, tree_of

RECORDED = np.load(HERE / "recorded_mmdit.npz")
DESCRIBED = {name: mmdit_of(config, name) for name, config in MMDITS.items()}


@pytest.fixture(scope="module", autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def spec_of(said, length=7):
    """Returns the spec of the latents and texts that a config.json describes."""
    text = ("text", Leaf((length, said.text_width))), ("pooled", Leaf((said.pooled_width,)))
    latents = Leaf((said.side, said.side, said.channels))
    return Spec(DataSpec(latents, False, text), said.channels, RectifiedFlow())


def network(name, **options):
    """Returns a network with the weights of the recorded outputs."""
    said = DESCRIBED[name]
    made = build(NETWORKS, "network", {**said.model, **options}, spec_of(said))
    names = json.loads(str(RECORDED[f"{name}_names"]))
    state = {key: of_array(mmdit_weights(key, tuple(shape))) for key, shape in names.items()}
    needed = jax.eval_shape(made.init, jax.random.key(0), *spec_of(said).example())
    params = stored_params(needed, state, epath.Path(name), "")
    assert torch_state(params).keys() == state.keys()
    return made, jax.tree.map(lambda leaf: jnp.asarray(leaf.read(())), params)


def given(number):
    z, k, text, _ = map(jnp.asarray, inputs(SIZES[number], 4))
    return z, (k + 1) / 1000, {"text": text, "pooled": jnp.asarray(pooled(SIZES[number]))}


def error(name, number, **options):
    made, params = network(name, **options)
    expected = RECORDED[f"{name}_{number}"]
    found = jax.jit(made.apply)(params, *given(number))
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("number", range(len(SIZES)))
@pytest.mark.parametrize("name", MMDITS)
def test_the_outputs_are_those_of_diffusers(name, number):
    assert error(name, number) < 2e-5


def test_the_outputs_depend_on_the_epsilon_of_the_norms(monkeypatch):
    monkeypatch.setattr(importlib.import_module("distill_jax.models.mmdit"), "NORM", 1e-5)
    assert error("sd35", 0) > 1e-3


def test_rematerialised_blocks_have_the_same_outputs():
    assert error("sd35", 0, remat="full") < 2e-5


@pytest.mark.parametrize("name", MMDITS)
def test_positions_are_those_of_the_table_in_a_checkpoint(name):
    places = DESCRIBED[name].model["places"]
    options = {key: value for key, value in DESCRIBED[name].model.items() if key != "name"}
    table = positions(Architecture(spec_of(DESCRIBED[name]), **options), (places, places))
    np.testing.assert_array_equal(table[-1:], RECORDED[f"{name}_positions"])
    middle = positions(Architecture(spec_of(DESCRIBED[name]), **options), (4, 2))
    square = table.reshape(places, places, -1)
    top, left = (places - 4) // 2, (places - 2) // 2
    cut = square[top : top + 4, left : left + 2]
    np.testing.assert_array_equal(middle, cut.reshape(8, -1))


def test_the_time_is_the_noise_level_of_a_shifted_flow():
    said = DESCRIBED["sd35"]
    made, params = network("sd35")
    shifted = build(
        NETWORKS, "network", said.model, spec_of(said)._replace(schedule=RectifiedFlow(3.0))
    )
    z, t, cond = given(0)
    expected = made.apply(params, z, 3 * t / (1 + 2 * t), cond)
    np.testing.assert_allclose(shifted.apply(params, z, t, cond), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("sd3_medium", 2_028_328_000),
        ("sd35_medium", 2_243_171_520),
        ("sd35_large", 8_056_627_520),
    ],
)
def test_the_full_sizes_have_the_names_and_shapes_of_diffusers(name, count):
    config, expected = tree_of(name)
    said = mmdit_of(config, name)
    spec = spec_of(said, 333)
    made = build(NETWORKS, "network", said.model, spec)
    shapes = jax.eval_shape(made.init, jax.random.key(0), *spec.example())
    places = said.model["places"]
    width = said.model["heads"] * said.model["head_dim"]
    assert expected.pop(BUFFER) == (1, places**2, width)
    assert names_of(shapes) == expected
    assert sum(math.prod(shape) for shape in expected.values()) == count


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dual_attention_layers": [1, 2]}, r"dual_attention_layers is \[1, 2\]; expected the f"),
        ({"qk_norm": "layer_norm"}, "qk_norm is 'layer_norm'; expected null or 'rms_norm'"),
        ({"caption_projection_dim": 17}, "caption_projection_dim is 17; only 16 is supported"),
        ({"out_channels": 8}, "out_channels is 8; only 4 is supported"),
        ({"num_layers": "many"}, "num_layers is 'many'; expected a whole number"),
    ],
)
def test_a_config_that_the_network_does_not_have_is_one_message(changes, message):
    with pytest.raises(ValueError, match=f"sd3: {message}"):
        mmdit_of({**MMDITS["sd3"], **changes}, "sd3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dual": 3, "blocks": 3}, "dual is 3; expected less than blocks = 3"),
        ({"places": 3}, "latent is 8x8; the table of positions has 3 patches of 2: .* at most 6"),
        ({"patch": 3}, "patch"),
    ],
)
def test_options_that_do_not_fit_are_one_message(options, message):
    with pytest.raises(ValueError, match=message):
        mmdit(spec_of(DESCRIBED["sd3"]), **options)
