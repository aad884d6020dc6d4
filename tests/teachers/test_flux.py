"""Tests of the reader of FLUX.1's pipelines, on small ones with random weights."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.models.build import make_network
from distill_jax.models.pretrained import torch_state
from distill_jax.sampling.loading import load
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from distill_jax.teachers import TEACHERS, importing
from tests.models.diffusers import FLUXES, SIZES, TEXT, VAES, inputs, pooled
from tests.models.test_diffusers import exact_products  # noqa: F401
from tests.models.test_flux import state_of
from tests.teachers.test_flow import NAME, SCHEDULER

DYNAMIC = {"use_dynamic_shifting": True, "base_image_seq_len": 4, "max_image_seq_len": 16}
TEXTS = {"text_encoder": {"hidden_size": 10}, "text_encoder_2": {"d_model": TEXT}}
GIVEN = {"side": 8, "length": 5}
read = TEACHERS["diffusers"]


def write(folder, name="dev", dtype="float32", **changes):
    """Writes a pipeline with the recorded weights of a network; changes of its config.json.

    Other changes are by the name of the folder; None leaves a folder out.
    """
    scheduler = {**SCHEDULER, **(DYNAMIC if name == "dev" else {"shift": 1.0})}
    parts = {"scheduler": scheduler, "vae": {"_class_name": "AutoencoderKL", **VAES["four"]}}
    parts |= {part: changes.pop(part) for part in (*TEXTS, *parts) if part in changes}
    kind = {"_class_name": "FluxTransformer2DModel", **FLUXES[name], **changes}
    for part, content in {**TEXTS, **parts, "transformer": kind}.items():
        if content is not None:
            end = "scheduler_config" if part == "scheduler" else "config"
            (folder / part).mkdir(parents=True, exist_ok=True)
            (folder / part / f"{end}.json").write_text(json.dumps(content))
    state = {key: of_array(value.astype(dtype)) for key, value in state_of(name).items()}
    safetensors.write(folder / "transformer" / NAME, state)
    return folder


def test_dev_takes_its_guidance_as_w(tmp_path):
    imported = read(write(tmp_path / "flux"), None, {**GIVEN, "resolutions": [4, 8]})
    assert imported.schedule["shift"] == pytest.approx(np.exp(1.15))
    assert (imported.w_range, imported.continuous, imported.num_steps) == ((0.0, 4.0), True, 28)
    assert imported.trained.resolutions == (4, 8)
    shapes = {key: leaf.shape for key, leaf in imported.data.cond}
    assert shapes == {"text": (5, TEXT), "text_mask": (5,), "pooled": (10,)}
    assert not imported.trained.guidance.null
    narrow = read(tmp_path / "flux", None, {**GIVEN, "w_range": [1, 3]})
    assert narrow.trained.guidance.w_range == (1.0, 3.0)


def test_dev_at_one_w_is_the_same_function_without_that_input(tmp_path):
    folder = write(tmp_path / "flux")
    z, k, text, _ = map(jnp.asarray, inputs(SIZES[0], 4))
    cond = {"text": text, "pooled": jnp.asarray(pooled(SIZES[0]))}
    found = []
    for given, more in (({}, {"w": jnp.full(len(z), 2.5)}), ({"w": 2.5}, {})):
        imported = read(folder, None, {**GIVEN, "length": 7, **given})
        network = make_network(imported._asdict(), imported.data).network
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf.read(())), imported.params)
        found.append(jax.jit(network.apply)(params, z, k / 1000, {**cond, **more}))
    scale = np.abs(found[0]).max()
    np.testing.assert_allclose(found[1], found[0], rtol=0, atol=2e-5 * scale)
    assert imported.trained.guidance == (None, 2.5, False)


def test_schnell_is_a_student_of_four_steps(tmp_path):
    imported = read(write(tmp_path / "flux", "schnell"), None, GIVEN)
    assert imported.schedule == {"name": "rectified_flow", "shift": 1.0}
    assert (imported.continuous, imported.num_steps, imported.w_range) == (False, 4, None)
    assert imported.data.x.shape == (8, 8, 4)


@pytest.mark.parametrize("name", FLUXES)
def test_an_imported_network_keeps_every_array_and_its_dtype(tmp_path, name):
    folder = write(tmp_path / "flux", name, "bfloat16")
    student = load(importing.convert("diffusers", folder, tmp_path / "x", given=GIVEN))
    expected, found = state_of(name), torch_state(student.params)
    assert found.keys() == expected.keys()
    for key, leaf in expected.items():
        np.testing.assert_array_equal(found[key].read(()), leaf.astype("bfloat16"), err_msg=key)


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({"text_encoder_2": None}, {}, "has no text_encoder_2/; expected a whole pipeline"),
        ({"text_encoder": {"hidden_size": 9}}, {}, "9 pooled channels and 12 of tokens; .* 10 and"),
        ({"vae": {**VAES["four"], "latent_channels": 16}}, {}, "is 16; the transformer takes 4"),
        ({}, {"side": 7}, "latents of 7x7; expected multiples of patch_size = 2"),
        ({}, {"w": 1.0, "w_range": [0, 2]}, "--set w and --set w_range; expected one of them"),
        ({"name": "schnell"}, {"w": 1.0}, "--set w: .* takes no guidance; leave it out"),
        ({}, {"label_dropout": 0.1}, "takes no --set label_dropout; it takes: length, side"),
    ],
)
def test_a_pipeline_that_is_not_supported_is_one_message(tmp_path, changes, given, message):
    with pytest.raises(ValueError, match=message):
        read(write(tmp_path / "flux", **changes), None, {**GIVEN, **given})
