"""Tests of students that are written as pipelines of diffusers."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from distill_jax.diffusion.inpainting import with_inpainting
from distill_jax.diffusion.pixels import to_uint8
from distill_jax.diffusion.spec import image_data
from distill_jax.diffusion.trained import Ddim, FlowMap, Guidance, Renoise, Signal, Trained
from distill_jax.models import vae
from distill_jax.models.build import abstract_params, make_network
from distill_jax.models.diffusers_files import read_directory, unet_of
from distill_jax.models.pretrained import stored_params, torch_state
from distill_jax.sampling.autoencoder import Autoencoder
from distill_jax.sampling.codecs import Fitted
from distill_jax.sampling.conditioners import on_device
from distill_jax.sampling.inpainting import conditions
from distill_jax.sampling.loading import describe, load
from distill_jax.sampling.manifest import Lineage, Manifest
from distill_jax.storage import checkpoint
from distill_jax.storage.weights import of_array
from distill_jax.teachers import importing
from distill_jax.teachers.pipelines import check_exportable, unet_config, write_pipeline
from tests import forks
from tests.models.diffusers import SCHEDULER, SIZES, STEPS, W, inputs, mask, pixels, weights
from tests.models.diffusers.lora import LCM
from tests.models.test_diffusers import HERE, LAYERS, OPTIONS, RECORDED, spec_of, tree_of, unet
from tests.models.test_diffusers import read as read_arrays
from tests.teachers.test_diffusers import write

LONGER = {"max_position_embeddings": 8}
SCHEDULE = {"name": "ddpm", "beta_min": 0.00085, "beta_max": 0.012, "power": 2, "zero_snr": True}
MANIFEST = Manifest(
    stage="s03_n0004",
    trained=Trained(Ddim(STEPS), Guidance((2.0, 14.0)), False),
    distilled=True,
    spec=spec_of(SIZES[0]).data,
    model={"name": "sd_unet", **OPTIONS["w"]},
    schedule=SCHEDULE,
    parameterization="v",
    data=None,
    lineage=Lineage({"name": "progressive"}),
)

DEPTH = spec_of(SIZES[0], 1).data
IMAGES = (32, 32, 3)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """Returns a student with the recorded weights of a UNet that takes w."""
    folder = epath.Path(tmp_path_factory.mktemp("student")) / "s03_n0004" / "final"
    checkpoint.save_final(folder, unet("w", SIZES[0])[1], MANIFEST.to_json())
    return load(folder)


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory):
    """Returns a student of an inpainting UNet that takes w, with its autoencoder."""
    data = with_inpainting(MANIFEST.spec)
    shapes = {"conv_in.weight": (8, 9, 3, 3)}  # Other arrays are those of the network "w".
    names = {**json.loads(str(RECORDED["w_names"])), **shapes}
    state = {key: of_array(weights(key, tuple(shape))) for key, shape in names.items()}
    manifest = dataclasses.replace(MANIFEST, spec=data)
    folder = epath.Path(tmp_path_factory.mktemp("inpainting")) / "s03_n0004" / "final"
    needed = abstract_params(make_network(manifest.to_json(), data), ("w",))
    found = jax.tree.map(lambda leaf: leaf.read(()), stored_params(needed, state, folder, ""))
    checkpoint.save_final(folder, found, manifest.to_json())
    codec = Autoencoder(**vars(LAYERS["four"]))
    params = read_arrays("four", vae.shapes(codec.layers))
    return dataclasses.replace(load(folder), codec=Fitted(codec, params, image_data(IMAGES, 0)))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Returns the directory of the teacher's pipeline; only its UNet has weights."""
    folder = write(tmp_path_factory.mktemp("teacher") / "sd")
    for place in ("tokenizer/vocab.json", "tokenizer/merges.txt"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text("{}")
    return folder


def test_a_student_draws_the_latents_and_images_of_the_pipeline_in_diffusers(student):
    z, _, text, _ = map(jnp.asarray, inputs(SIZES[0], 4))
    cond = {"text": text, "text_mask": jnp.ones((2, 7), bool), "w": jnp.full(2, W)}
    with jax.default_matmul_precision("highest"):
        draw = jax.jit(lambda z, cond: Ddim(STEPS)(jax.random.key(0), student.denoiser, z, cond))
        found = draw(z, cond)
    expected = RECORDED["latents"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    codec = Autoencoder(**vars(LAYERS["four"]))
    with jax.default_matmul_precision("highest"):
        images = jax.jit(codec.decode)(read_arrays("four", vae.shapes(codec.layers)), found)
    ours, theirs = to_uint8(np.asarray(images)), RECORDED["pictures"]
    assert np.ptp(theirs) > 150
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1)  # Grey levels.
    assert np.mean(ours != theirs) < 0.01


def test_an_inpainting_student_draws_the_latents_of_the_pipeline_in_diffusers(inpainting):
    z, _, text, _ = map(jnp.asarray, inputs(SIZES[0], 4))
    masked = inpainting.with_masked(pixels(SIZES[0], 4), mask(SIZES[0], 4)[..., None])
    cond = {"text": text, "text_mask": jnp.ones((2, 7), bool), "w": jnp.full(2, W)}
    cond |= on_device(conditions(masked, 2))
    with jax.default_matmul_precision("highest"):
        draw = jax.jit(lambda z, cond: Ddim(STEPS)(jax.random.key(0), masked.denoiser, z, cond))
        found = draw(z, cond)
    expected = np.load(HERE / "inpainted.npy")
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_an_inpainting_student_becomes_an_inpainting_pipeline(inpainting, source, tmp_path):
    out = write_pipeline(inpainting, source, tmp_path / "out")
    unet = unet_of(read_directory(out / "unet", "UNet2DConditionModel").content, "unet")
    assert (unet.channels, unet.inpaint, unet.takes_w) == (4, 5, True)
    index = json.loads((out / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInpaintPipeline"
    version = tuple(map(int, index["_diffusers_version"].split(".")))
    assert version > (0, 5, 1)  # For older ones, diffusers takes another pipeline.
    card = (out / "README.md").read_text()
    assert "StableDiffusionInpaintPipeline.from_pretrained(DIR)" in card
    assert "mask_image, strength=1.0, num_inference_steps=4, guidance_scale=7.5" in card
    assert "`strength` must be 1.0" in card
    again = describe(importing.convert("diffusers", out, tmp_path / "x")).manifest
    assert (again.spec, again.trained) == (inpainting.manifest.spec, inpainting.manifest.trained)


def test_a_pipeline_has_the_files_that_diffusers_reads(student, source, tmp_path):
    out = write_pipeline(student, source, tmp_path / "out")
    found = read_directory(out / "unet", "UNet2DConditionModel")
    unet = unet_of(found.content, "unet")
    assert unet.model == {**MANIFEST.model, "linear": False}
    assert (unet.channels, unet.inpaint, unet.text_width, unet.takes_w) == (4, 0, 12, True)
    ours = torch_state(student.params)
    assert found.state.keys() == ours.keys()
    for name, leaf in ours.items():
        np.testing.assert_array_equal(found.state[name].read(()), leaf.read(()), err_msg=name)
    scheduler = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler == SCHEDULER
    index = json.loads((out / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    for place in ("vae/config.json", "text_encoder/config.json", "tokenizer/merges.txt"):
        assert (out / place).read_bytes() == (source / place).read_bytes()
    card = (out / "README.md").read_text()
    assert "num_inference_steps=4, guidance_scale=7.5" in card
    assert "`guidance_scale` from 3 to 15" in card
    with pytest.raises(ValueError, match="exists; choose the name of a new directory"):
        write_pipeline(student, source, tmp_path / "out")


def test_a_student_that_adds_noise_between_its_calls_becomes_a_pipeline(source, tmp_path):
    trained = Trained(Renoise((1.0, 0.75, 0.25)), Guidance(fixed_w=6.5))
    model = {"name": "sd_unet", **OPTIONS["sd2"]}
    manifest = dataclasses.replace(MANIFEST, trained=trained, model=model)
    folder = epath.Path(tmp_path / MANIFEST.stage / "final")
    checkpoint.save_final(folder, unet("sd2", SIZES[0])[1], manifest.to_json())
    out = write_pipeline(load(folder), source, tmp_path / "out")
    scheduler = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler == {**LCM, "rescale_betas_zero_snr": True}
    index = json.loads((out / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "LCMScheduler"]
    assert json.loads((out / "unet" / "config.json").read_text())["time_cond_proj_dim"] is None
    card = (out / "README.md").read_text()
    # With a terminal SNR of zero its first call is on noise of standard deviation 1.
    assert "init_noise_sigma" not in card
    assert "pipeline(prompt, timesteps=[999, 749, 249], guidance_scale=1).images[0]" in card
    assert "`guidance_scale` must be 1: guidance of w = 6.5 is in the weights" in card
    with pytest.raises(ValueError, match="student that takes no guidance strength, which has no"):
        importing.convert("diffusers", out, tmp_path / "x")


def test_the_config_of_a_full_unet_is_that_of_diffusers():
    config, _ = tree_of("lcm_sd15_unet")
    data = spec_of((1, 96, 96)).data
    text = dict(data.cond)["text"]._replace(shape=(77, 768))
    found = unet_config(unet_of(config, "lcm").model, data._replace(cond=(("text", text),)), ("w",))
    each = {"attention_head_dim": [8] * 4}  # One number means the same.
    assert found == {key: {**config, **each}[key] for key in found}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"name": "dit"}}, "the network is 'dit' .* needs 'sd_unet' with a text"),
        ({"spec": DEPTH}, r"inpaint \(8, 8, 1\), text \(7, 12\), .* maybe a mask and the masked"),
        ({"trained": Trained(Ddim(4), all_times=True)}, "takes no guidance strength, and was tr"),
        ({"trained": Trained(Ddim(16), Guidance((0.0, 4.0)))}, "Ddim in 16 steps; .* divides 1000"),
        ({"trained": Trained(Signal(0.01, 1.0))}, "is Signal in 1 steps"),
        ({"trained": Trained(FlowMap(1))}, "is FlowMap in 1 steps"),
        ({"trained": Trained(Renoise((1.0, 0.5555)))}, "a call at t = 0.5555; diffusers has whole"),
        ({"trained": Trained(Renoise((1.0, 0.001)))}, "t = 0.001; .* 1 / 1000, from 2 / 1000"),
        ({"trained": Trained(Renoise((1.0, 0.5), (4, 8)))}, "LCMScheduler has one size, 8"),
        ({"parameterization": "eps"}, "'eps' and zero_snr True; .* divides by it: expected 'v'"),
        ({"schedule": {"name": "cosine"}}, "schedule is 'cosine'"),
        ({"parameterization": "both"}, "parameterization 'both'; expected 'ddpm' and one of eps"),
        ({"model": {**MANIFEST.model, "hide_padding": True}}, "hide_padding is True"),
    ],
)
def test_a_student_that_diffusers_cannot_run_is_one_message(changes, message):
    with pytest.raises(ValueError, match=message):
        check_exportable(dataclasses.replace(MANIFEST, **changes))


def test_half_a_source_is_one_message_and_writes_nothing(student, tmp_path):
    folder = write(tmp_path / "sd")
    with pytest.raises(ValueError, match="has no tokenizer/; expected the pipeline of the teacher"):
        write_pipeline(student, folder, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"sd"}


def test_the_text_encoder_of_another_teacher_is_one_message(student, source, tmp_path):
    config = source / "text_encoder" / "config.json"
    before = config.read_text()
    for change, message in (({"hidden_size": 13}, "the UNet takes 12"), (LONGER, r"\(8, 12\)")):
        config.write_text(json.dumps({**json.loads(before), **change}))
        with pytest.raises(ValueError, match=message):
            write_pipeline(student, source, tmp_path / "out")
    config.write_text(before)


def test_the_command_writes_a_pipeline_or_one_message(student, source, tmp_path):
    given = [f"--student={student.directory}", f"--source={source}", f"--out={tmp_path / 'out'}"]
    code, _, stderr = forks.run("distill_jax.export", *given)
    assert (code, (tmp_path / "out" / "unet" / "config.json").exists()) == (0, True), stderr
    code, _, stderr = forks.run("distill_jax.export", *given)
    assert code == 1
    assert "exists; choose the name of a new directory" in stderr
    code, _, stderr = forks.run("distill_jax.export", *given[:1], *given[2:])
    assert code == 1
    assert "--source is needed: the pipeline of the student's teacher" in stderr
