"""Tests of networks that are written as pipelines of FLUX.1, or as a LoRA of one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from distill_jax.diffusion import samplers
from distill_jax.diffusion.trained import Ddim, Guidance, Renoise, Trained
from distill_jax.sampling.loading import load
from distill_jax.storage import safetensors
from distill_jax.teachers import TEACHERS, flux_pipelines, importing
from distill_jax.teachers.lora import write_lora
from distill_jax.teachers.pipelines import write_pipeline
from tests.models.diffusers import FLOW_LCM, FLOW_TIMES, FLUXES, STEPS, W, flow_noise
from tests.models.diffusers.lora import lora_weights
from tests.models.test_diffusers import HERE, exact_products  # noqa: F401 - a fixture.
from tests.models.test_flux import given
from tests.teachers import test_lora
from tests.teachers.test_flow import NAME, SCHEDULER
from tests.teachers.test_flux import GIVEN, write

RECORDED = np.load(HERE / "recorded_flux_flow.npz")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Returns pipelines of dev and schnell, by name, with the networks that they become."""
    folder = epath.Path(tmp_path_factory.mktemp("flux"))
    found = {}
    for name in FLUXES:
        pipeline = write(folder / name, name, scheduler={**SCHEDULER, "shift": 3.0})
        for place in ("tokenizer/vocab.json", "tokenizer_2/tokenizer.json"):
            (pipeline / place).parent.mkdir()
            (pipeline / place).write_text("{}")
        final = importing.convert("diffusers", pipeline, folder / f"{name}_network", given=GIVEN)
        found[name] = pipeline, load(final)
    return found


def few(student, sampler, **guidance):
    """Returns a network as a student with a sampler."""
    trained = Trained(sampler, Guidance(**guidance))
    manifest = dataclasses.replace(student.manifest, trained=trained, stage="s00_few")
    return dataclasses.replace(student, manifest=manifest)


def drawn(student, name, sampler, z, w=None):
    cond = given(name, 0)[2]
    cond |= {} if w is None else {"w": jnp.full(len(z), w)}
    draw = jax.jit(lambda z: sampler(jax.random.key(0), student.denoiser, z, cond))
    return draw(jnp.asarray(z))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_dev_draws_the_latents_of_its_pipeline_in_diffusers(imported):
    found = drawn(imported["dev"][1], "dev", Ddim(STEPS), flow_noise(1), W)
    close(found, RECORDED["dev"])


def test_a_student_with_new_noise_draws_those_of_the_lcm_scheduler(imported, monkeypatch):
    again = np.random.default_rng(2).normal(size=(2, 8, 8, 4))
    monkeypatch.setattr(samplers, "step_noise", lambda key, i, x: jnp.asarray(again, jnp.float32))
    found = drawn(imported["schnell"][1], "schnell", Renoise(FLOW_TIMES), flow_noise(1))
    close(found, RECORDED["schnell"])


@pytest.mark.parametrize(
    ("name", "sampler", "guidance", "words"),
    [
        ("dev", Ddim(STEPS), {"w_range": (1.0, 3.0)}, ("guidance_scale=4.0", "w is from 1 to 3.")),
        ("schnell", Renoise(FLOW_TIMES), {"fixed_w": 6.0}, ("sigmas=[1.0, 0.5]", "changes noth")),
    ],
)
def test_a_student_becomes_a_pipeline_and_is_imported_again(
    imported, tmp_path, name, sampler, guidance, words
):
    source, network = imported[name]
    student = few(network, sampler, **guidance)
    out = write_pipeline(student, source, tmp_path / "out")

    def read_json(place):
        return json.loads((out / place).read_text())

    lcm = {**FLOW_LCM, "scale_factors": None}
    euler = {**SCHEDULER, "num_train_timesteps": 1000}
    kept = read_json("scheduler/scheduler_config.json")
    assert kept == (lcm if isinstance(sampler, Renoise) else euler)
    kind = {"_class_name": "FluxTransformer2DModel", "patch_size": 1, **FLUXES[name]}
    config = read_json("transformer/config.json")
    assert config == config | json.loads(json.dumps(kind))
    assert read_json("model_index.json")["_class_name"] == "FluxPipeline"
    card = (out / "README.md").read_text()
    for line in ("height=32,", "max_sequence_length=5", *words):
        assert line in card
    before, after = (safetensors.read(each / "transformer" / NAME) for each in (source, out))
    assert before.keys() == after.keys()
    for key, leaf in before.items():
        np.testing.assert_array_equal(leaf.read(()), after[key].read(()), err_msg=key)
    again = TEACHERS["diffusers"](out, None, GIVEN)
    assert again.trained.guidance.w_range == guidance.get("w_range")
    assert again.trained.num_steps == sampler.num_steps
    assert (type(again.trained.sampler), again.continuous) == (type(sampler), False)


def test_a_network_of_one_w_is_imported_again_as_a_teacher_of_all_times(imported, tmp_path):
    source, _ = imported["dev"]
    final = importing.convert("diffusers", source, tmp_path / "x", given={**GIVEN, "w": 2.5})
    out = write_pipeline(load(final), source, tmp_path / "out")
    assert not json.loads((out / "transformer" / "config.json").read_text())["guidance_embeds"]
    again = TEACHERS["diffusers"](out, None, GIVEN)
    assert (again.continuous, again.num_steps, again.w_range) == (True, 28, None)


def test_what_the_pipeline_cannot_run_is_one_message(imported, tmp_path):
    source, network = imported["schnell"]
    growing = few(network, Renoise(FLOW_TIMES, (4, 8)))
    with pytest.raises(ValueError, match="s00_few are at latents of growing sizes, .*=lora or"):
        write_pipeline(growing, source, tmp_path / "out")
    (source / "tokenizer_2").rename(source / "elsewhere")
    with pytest.raises(ValueError, match="schnell has no tokenizer_2/; expected the pipeline of"):
        write_pipeline(few(network, Ddim(4)), source, tmp_path / "out")
    (source / "elsewhere").rename(source / "tokenizer_2")
    other = dataclasses.replace(network.manifest, parameterization="v")
    with pytest.raises(ValueError, match="parameterization 'v'; expected 'rectified_flow' and"):
        flux_pipelines.check_exportable(other)
    other = dataclasses.replace(network.manifest, spec=network.manifest.spec._replace(cond=()))
    with pytest.raises(ValueError, match="'flux' with the conditions none; a pipeline of FLUX.1"):
        flux_pipelines.check_exportable(other)


RECORDED_LORA = np.load(HERE / "recorded_flux_lora.npz")


def adapted(pipeline, folder, sampler, values, **guidance):
    """Returns a student with the recorded adapters of dev, imported with these values."""
    base = importing.convert("diffusers", pipeline, folder / "base", given={**GIVEN, **values})
    trained = Trained(sampler, Guidance(**guidance))
    return load(test_lora.save(folder, base, trained, recorded=RECORDED_LORA), parts=[base])


def test_adapters_are_those_of_diffusers_with_the_lora(tmp_path):
    pipeline = write(epath.Path(tmp_path) / "dev", scheduler={**SCHEDULER, "shift": 1.0})
    student = adapted(pipeline, epath.Path(tmp_path), Ddim(STEPS), {}, w_range=(0.0, 4.0))
    found = safetensors.read(write_lora(student, "lora", tmp_path / "x.safetensors"))
    names = json.loads(str(RECORDED_LORA["transformer_names"]))
    assert {key: list(leaf.shape) for key, leaf in found.items()} == names
    for key, leaf in found.items():
        np.testing.assert_array_equal(leaf.read(()), lora_weights(key, names[key]), err_msg=key)
    z, t, cond = given("dev", 0)
    apply = jax.jit(student.network_spec.network.apply)
    close(apply(student.params, z, t, cond), RECORDED_LORA["transformer"])


def test_a_lora_on_a_network_of_one_w_says_its_guidance_and_that_latents_grow(imported, tmp_path):
    sampler, values = Renoise(FLOW_TIMES, (4, 8)), {"w": 2.5}
    student = adapted(imported["dev"][0], tmp_path, sampler, values, fixed_w=2.5)
    card = write_lora(student, "lora", tmp_path / "x.safetensors").with_suffix(".md").read_text()
    for words in (
        "from diffusers import FlowMatchLCMScheduler, FluxPipeline",
        "guidance_scale=3.5, max_sequence_length=5",
        "`guidance_scale` is 1 + w, and w is 2.5.",
        "with these sides: 4, 8. No pipeline of diffusers scales",
    ):
        assert words in card
