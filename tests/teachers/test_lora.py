"""Tests of adapters that are written as a LoRA, against diffusers with that LoRA (make_lora.py)."""

import dataclasses
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from distill_jax.diffusion import samplers
from distill_jax.diffusion.trained import Ddim, Guidance, Renoise, Trained
from distill_jax.models.build import adapter_shapes, make_network
from distill_jax.runtime.trees import by_name, insert, layers_of
from distill_jax.sampling.loading import describe, load
from distill_jax.sampling.manifest import Adapters, Reference
from distill_jax.storage import checkpoint, safetensors
from distill_jax.teachers import importing, schedulers
from distill_jax.teachers.lora import write_lora
from tests import forks
from tests.models.diffusers import SIZES, inputs, pooled
from tests.models.diffusers.lora import RANK, STUDENTS, lora_weights, noise
from tests.models.test_diffusers import HERE
from tests.teachers import test_flow
from tests.teachers.test_diffusers import write
from tests.test_commands import one_message
from tests.toys import jitted

RECORDED = np.load(HERE / "recorded_lora.npz")
RENOISED = Trained(Renoise((1.0, 0.75, 0.5)), Guidance(fixed_w=6.5))
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v"}


@pytest.fixture(scope="module", autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


def pair_of(name, leaf, prefix, names):
    """Returns one side of a pair in our layout, from the weights of a LoRA by its names in PEFT."""
    *modules, _, side = name.split("/")
    modules, stacked = layers_of(".".join(modules), "."), "[" in name
    found = []
    for module in modules:
        shape = leaf.shape[stacked:]
        key = f"{prefix}.{module}.lora_{side[-1].upper()}.weight"
        x = lora_weights(key, names[key])
        if side == "lora_b":
            found.append(x.reshape(x.shape[:2]).T)
        else:
            found.append(x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T)
        assert found[-1].shape == shape, name
    return np.stack(found) if stacked else found[0]


def save(folder, base, trained=RENOISED, full=(), recorded=RECORDED, **changes):
    """Saves a student with the recorded adapters of an imported network; returns its final/."""
    manifest = describe(base).manifest
    reference = Reference(str(base), checkpoint.fingerprint(base))
    manifest = dataclasses.replace(
        manifest,
        stage="s00_dmd2",
        trained=trained,
        distilled=True,
        adapters=Adapters(reference, RANK, full),
        **changes,
    )
    network = make_network(manifest.to_json(), manifest.spec)
    prefix = "unet" if manifest.model["name"] == "sd_unet" else "transformer"
    adapters, names = {}, json.loads(str(recorded[f"{prefix}_names"]))
    for name, leaf in by_name(adapter_shapes(network, trained.inputs, RANK, full)).items():
        pairs = name.endswith(("lora_a", "lora_b"))
        insert(
            adapters, name, pair_of(name, leaf, prefix, names) if pairs else jnp.ones(leaf.shape)
        )
    final = epath.Path(folder) / "s00_dmd2" / "final"
    checkpoint.save_final(final, adapters, manifest.to_json())
    return final


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """Returns an imported UNet, and a student with adapters of it that is compiled once."""
    folder = tmp_path_factory.mktemp("unet")
    base = importing.convert("diffusers", write(folder / "sd15", "sd1"), folder / "teacher")
    student = load(save(folder, base), parts=[base])
    network = jitted(student.network_spec.network)
    network_spec = dataclasses.replace(student.network_spec, network=network)
    return base, dataclasses.replace(student, network_spec=network_spec)


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """Returns a student with adapters of an imported transformer of Stable Diffusion 3."""
    folder = epath.Path(tmp_path_factory.mktemp("transformer"))
    base = importing.convert("diffusers", test_flow.write(folder / "sd3"), folder / "teacher")
    trained = Trained(Renoise((1.0, 0.5), (4, 8)), Guidance(fixed_w=6.0))
    return load(save(folder, base, trained), parts=[base])


def close(found, name):
    expected = RECORDED[name]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def check_file(file, name):
    """Compares a file with the LoRA that diffusers loaded."""
    found = safetensors.read(file)
    assert {key: list(leaf.shape) for key, leaf in found.items()} == json.loads(
        str(RECORDED[f"{name}_names"])
    )
    return {key: leaf.read(()) for key, leaf in found.items()}


@pytest.mark.parametrize("style", ["unet", "kohya"])
def test_a_unet_with_adapters_is_that_of_diffusers_with_the_lora(unet, style):
    z, k, text, _ = inputs(SIZES[0], 4)
    given = map(jnp.asarray, (z, (k + 1) / np.float32(1000)))
    student = unet[1]
    cond = {"text": jnp.asarray(text), "text_mask": jnp.ones((2, 7), bool)}
    close(student.network_spec.network.apply(student.params, *given, cond), style)


def test_a_transformer_with_adapters_is_that_of_diffusers_with_the_lora(transformer):
    z, k, text, _ = map(jnp.asarray, inputs(SIZES[0], 4))
    cond = {"text": text, "pooled": jnp.asarray(pooled(SIZES[0]))}
    # The network's time is the shifted noise level, which diffusers was given here.
    time = transformer.network_spec.spec.schedule
    t = time.time(2 * (jnp.log1p(-(k + 1) / 1000) - jnp.log((k + 1) / 1000)))
    apply = jax.jit(transformer.network_spec.network.apply)
    close(apply(transformer.params, z, t, cond), "transformer")


@pytest.mark.parametrize("name", ["unet", "transformer"])
def test_a_lora_has_the_arrays_that_diffusers_loads(unet, transformer, name, tmp_path):
    student = unet[1] if name == "unet" else transformer
    file = write_lora(student, "lora", tmp_path / "x.safetensors")
    for key, leaf in check_file(file, name).items():
        np.testing.assert_array_equal(leaf, lora_weights(key, leaf.shape), err_msg=key)


def test_a_lora_of_kohya_has_the_arrays_that_diffusers_loads(unet, tmp_path):
    plain = safetensors.read(write_lora(unet[1], "lora", tmp_path / "x.safetensors"))
    file = write_lora(unet[1], "kohya", tmp_path / "y.safetensors")
    found = check_file(file, "kohya")
    names = {"lora_A": "lora_down", "lora_B": "lora_up"}
    for key, leaf in plain.items():
        module, side, _ = key.removeprefix("unet.").rsplit(".", 2)
        place = f"lora_unet_{module.replace('.', '_')}"
        np.testing.assert_array_equal(found[f"{place}.{names[side]}.weight"], leaf.read(()))
        assert found[f"{place}.alpha"] == RANK


@pytest.mark.parametrize("name", STUDENTS)
def test_a_renoising_student_draws_the_latents_of_diffusers_with_its_scheduler(
    unet, name, monkeypatch
):
    config, times = STUDENTS[name]
    student = unet[1]
    head = PREDICTIONS[config["prediction_type"]]
    # With resolutions, which are all the same, the sampler is a loop in Python.
    trained = RENOISED._replace(sampler=Renoise(times, (8,) * len(times)))
    changes = {"parameterization": head, "trained": trained}
    manifest = dataclasses.replace(student.manifest, **changes)
    assert schedulers.scheduler_config(manifest) == config
    sigma = float(RECORDED[f"{name}_sigma"])
    assert schedulers.before(manifest) == f"pipeline.scheduler.init_noise_sigma = {sigma:.6g}\n"
    monkeypatch.setattr(samplers, "step_noise", lambda key, call, x: jnp.asarray(noise(call)))
    made = make_network(manifest.to_json(), manifest.spec)
    denoiser = dataclasses.replace(made, network=student.network_spec.network)(student.params)
    text = jnp.asarray(inputs(SIZES[0], 4)[2])
    cond = {"text": text, "text_mask": jnp.ones((2, 7), bool)}
    close(trained.sampler(jax.random.key(0), denoiser, jnp.asarray(noise(0)), cond), name)


def test_the_card_says_how_diffusers_samples_with_the_lora(unet, transformer, tmp_path):
    file = write_lora(unet[1], "lora", tmp_path / "sd" / "x.safetensors")
    card = (file.parent / "x.md").read_text()
    for text in (
        "a LoRA of rank 2 on\nsd15, whose network has the SHA-256 ",
        "Its licence is that of its base.",
        'StableDiffusionPipeline.from_pretrained("sd15")\npipeline.load_lora_weights("x.saf',
        "LCMScheduler.from_config(\n{'beta_schedule': 'scaled_linear',",
        "pipeline.scheduler.init_noise_sigma = 0.99766",
        "height=8 * pipeline.vae_scale_factor,",
        "timesteps=[999, 749, 499], guidance_scale=1,",
        "guidance of w = 6.5 is in the weights",
    ):
        assert text in card
    card = write_lora(transformer, "lora", tmp_path / "y.safetensors").with_suffix(".md")
    for text in (
        "FlowMatchLCMScheduler.from_config(\n{'num_train_timesteps': 1000,\n 'shift': 3.0,",
        "'scale_factors': [2.0],",
        "height=4 * pipeline.vae_scale_factor,",
        "sigmas=[1.0, 0.5], guidance_scale=1.0, max_sequence_length=256,",
        "at latents with these sides: 4, 8.",
    ):
        assert text in card.read_text()


def test_a_lora_replaces_no_file(unet, tmp_path):
    (tmp_path / "x.md").write_text("")
    with pytest.raises(ValueError, match=r"x.md exists; choose the name of a new file"):
        write_lora(unet[1], "lora", tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="no name of a LoRA; expected FILE.safetensors"):
        write_lora(unet[1], "lora", tmp_path / "x")
    assert {path.name for path in tmp_path.iterdir()} == {"x.md"}


def test_adapters_of_another_base_are_one_message(unet, transformer, tmp_path):
    student = describe(unet[1].directory, parts=transformer.parts)
    with pytest.raises(ValueError, match="with the fingerprint .* looked at: .*--base=DIR"):
        write_lora(student, "lora", tmp_path / "x.safetensors")


def test_adapters_of_weights_that_nobody_else_has_are_one_message(unet, tmp_path):
    base = pathlib.Path(shutil.copytree(unet[0].parent, tmp_path / "base"))
    place = base / "final" / "manifest.json"
    content = json.loads(place.read_text())
    del content["checksum"], content["lineage"]["source"]
    place.write_text(json.dumps(content))
    student = describe(unet[1].directory, parts=[base])
    with pytest.raises(
        ValueError, match="not those of a pipeline of diffusers.*--format=diffusers"
    ):
        write_lora(student, "lora", tmp_path / "x.safetensors")


def test_modules_that_are_trained_in_full_are_one_message(unet, tmp_path):
    trained = Trained(Ddim(4), Guidance((2.0, 14.0)))
    full = ("time_embedding.cond_proj",)
    student = describe(save(tmp_path, unet[0], trained, full), parts=[unet[0]])
    with pytest.raises(ValueError, match="time_embedding.cond_proj is trained in full, .*=diffus"):
        write_lora(student, "lora", tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="which Kohya has no name for: take --format=lora"):
        write_lora(student, "kohya", tmp_path / "x.safetensors")


def test_a_transformer_has_no_names_of_kohya(transformer, tmp_path):
    with pytest.raises(ValueError, match="'mmdit'; diffusers reads Kohya's names for the UNets"):
        write_lora(transformer, "kohya", tmp_path / "x.safetensors")


def test_the_command_writes_a_lora_or_one_message(unet, tmp_path):
    base, student = unet
    out = f"--out={tmp_path / 'x.safetensors'}"
    given = [f"--student={student.directory}", out, "--format=lora"]
    assert "--base=DIR" in one_message(*forks.run("distill_jax.export", *given))
    code, stdout, stderr = forks.run("distill_jax.export", *given, f"--base={base}")
    assert code == 0, stderr
    assert "x.md says how to load them" in stdout
    check_file(tmp_path / "x.safetensors", "unet")
    message = one_message(*forks.run("distill_jax.export", *given, "--source=sd15"))
    assert "--source=sd15 is not read with --format=lora; leave it out" in message
    given[:2] = f"--student={base}", f"--out={tmp_path / 'y.safetensors'}"
    message = one_message(*forks.run("distill_jax.export", *given))
    assert "has no adapters, for all its weights are new; write the whole network" in message
