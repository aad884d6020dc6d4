"""Tests of networks that are written as pipelines of Stable Diffusion 3."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from distill_jax.diffusion import samplers
from distill_jax.diffusion.denoiser import guided
from distill_jax.diffusion.trained import Ddim, Guidance, Renoise, Trained
from distill_jax.sampling.loading import load
from distill_jax.sampling.manifest import Lineage, Manifest
from distill_jax.storage import checkpoint, safetensors
from distill_jax.teachers import TEACHERS, importing
from distill_jax.teachers.pipelines import write_pipeline
from distill_jax.teachers.sd3_pipelines import check_exportable
from tests.models.diffusers import (
    FLOW_EULER,
    FLOW_LCM,
    FLOW_SIDES,
    FLOW_TIMES,
    MMDITS,
    SIZES,
    STEPS,
    W,
    flow_noise,
    inputs,
    pooled,
)
from tests.models.test_diffusers import HERE
from tests.models.test_mmdit import DESCRIBED, network, spec_of
from tests.teachers.test_flow import NAME, write

RECORDED = np.load(HERE / "recorded_flow.npz")
MANIFEST = Manifest(
    stage="s00_swd",
    trained=Trained(Renoise(FLOW_TIMES, FLOW_SIDES), Guidance(fixed_w=6.0)),
    distilled=True,
    spec=spec_of(DESCRIBED["sd35"]).data,
    model=DESCRIBED["sd35"].model,
    schedule={"name": "rectified_flow", "shift": 3.0},
    parameterization="flow",
    data=None,
    lineage=Lineage({"name": "swd"}),
)
TEACHER = Trained(Ddim(STEPS), Guidance(null=True), all_times=True)


@pytest.fixture(scope="module", autouse=True)
def exact_products():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """Returns a student of two calls with the recorded weights of a transformer."""
    folder = epath.Path(tmp_path_factory.mktemp("student")) / "s00_swd" / "final"
    checkpoint.save_final(folder, network("sd35")[1], MANIFEST.to_json())
    return load(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Returns the directory of the teacher's pipeline; only its transformer has weights."""
    folder = write(epath.Path(tmp_path_factory.mktemp("teacher")) / "sd3")
    for place in ("tokenizer/vocab.json", "tokenizer_2/vocab.json", "tokenizer_3/tokenizer.json"):
        (folder / place).parent.mkdir(exist_ok=True)
        (folder / place).write_text("{}")
    return folder


def conditions():
    _, _, text, _ = map(jnp.asarray, inputs(SIZES[0], 4))
    return {"text": text, "pooled": jnp.asarray(pooled(SIZES[0]))}


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_a_student_of_growing_latents_draws_those_of_the_pipeline_in_diffusers(
    student, monkeypatch
):
    monkeypatch.setattr(samplers, "step_noise", lambda key, i, x: jnp.asarray(flow_noise(i)))
    # The first call takes the corner of the noise that has its size.
    z = np.zeros((2, 8, 8, 4), np.float32)
    z[:, :4, :4] = flow_noise(0)
    sampler = MANIFEST.trained.sampler
    found = sampler(jax.random.key(0), student.denoiser, jnp.asarray(z), conditions())
    close(found, RECORDED["student"])


def test_a_guided_teacher_draws_the_latents_of_the_pipeline_in_diffusers(student):
    cond = conditions()
    null = {name: jnp.zeros_like(leaf[:1]) for name, leaf in cond.items()}
    denoiser = guided(student.denoiser, W, null)
    draw = jax.jit(lambda z: Ddim(STEPS)(jax.random.key(0), denoiser, z, cond))
    close(draw(jnp.asarray(flow_noise(1))), RECORDED["teacher"])


def test_a_student_becomes_a_pipeline_and_is_imported_again(student, source, tmp_path):
    out = write_pipeline(student, source, tmp_path / "out")

    def read_json(place):
        return json.loads((out / place).read_text())

    assert read_json("scheduler/scheduler_config.json") == FLOW_LCM
    config = {"_class_name": "SD3Transformer2DModel", "patch_size": 2, **MMDITS["sd35"]}
    assert read_json("transformer/config.json") == {**config, "dual_attention_layers": [0, 1]}
    index = read_json("model_index.json")
    assert index["_class_name"] == "StableDiffusion3Pipeline"
    assert index["text_encoder_3"] == ["transformers", "T5EncoderModel"]
    card = (out / "README.md").read_text()
    for line in ("height=16,", "sigmas=[1.0, 0.5]", "guidance_scale=1.0", "4x4, 8x8"):
        assert line in card
    state = safetensors.read(out / "transformer" / NAME)
    np.testing.assert_array_equal(
        state["pos_embed.pos_embed"].read(())[0, -1:],
        np.load(HERE / "recorded_mmdit.npz")["sd35_positions"],
    )
    again = load(importing.convert("diffusers", out, tmp_path / "again"))
    assert again.manifest.trained.sampler == MANIFEST.trained.sampler
    assert not again.manifest.trained.all_times
    jax.tree.map(np.testing.assert_array_equal, again.params, student.params)


def test_an_imported_teacher_becomes_the_same_pipeline_bit_for_bit(source, tmp_path):
    teacher = load(importing.convert("diffusers", source, tmp_path / "teacher"))
    out = write_pipeline(teacher, source, tmp_path / "out")
    before, after = (safetensors.read(each / "transformer" / NAME) for each in (source, out))
    assert before.keys() == after.keys()
    for name in before.keys() - {"pos_embed.pos_embed"}:
        np.testing.assert_array_equal(before[name].read(()), after[name].read(()), err_msg=name)
    config = json.loads((out / "scheduler" / "scheduler_config.json").read_text())
    assert config == FLOW_EULER
    again = TEACHERS["diffusers"](out)
    assert (again.continuous, again.num_steps, again.label_dropout) == (True, 28, 0.1)
    assert "guidance_scale=7.0" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameterization": "v"}, "parameterization 'v'; expected 'rectified_flow' and 'flow'"),
        ({"schedule": {"name": "cosine"}}, "schedule is 'cosine'"),
        (
            {"trained": Trained(Ddim(4), Guidance((0.0, 4.0)))},
            "with the conditions pooled, text, w.*; a pipeline of Stable Diffusion 3 gives a text",
        ),
        ({"spec": MANIFEST.spec._replace(cond=())}, "with the conditions none"),
    ],
)
def test_networks_that_the_pipeline_cannot_run_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        check_exportable(dataclasses.replace(MANIFEST, **changes))


def test_half_a_source_is_one_message(student, source, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no transformer/, scheduler/, vae/; expected a whole"):
        write_pipeline(student, tmp_path / "empty", tmp_path / "out")
    half = write(epath.Path(tmp_path) / "half")
    with pytest.raises(ValueError, match="half has no tokenizer/; expected the pipeline of the"):
        write_pipeline(student, half, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out exists; choose the name of a new directory"):
        write_pipeline(student, source, tmp_path / "out")
