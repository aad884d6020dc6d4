"""Networks of other families are named, with what to do."""

import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.sampling.loading import load
from distill_jax.storage.weights import of_array
from distill_jax.teachers import TEACHERS, adm, families, given, writer
from tests.teachers.pickles import Call, Global, dump, network
from tests.teachers.test_adm import OTHERS, UNCONDITIONAL, state_of, zeros
from tests.teachers.test_formats import OPTIONS, STATE, pickled

ARRAY = Call("numpy._core.multiarray", "_reconstruct", Global("numpy", "ndarray"), (0,), b"b")


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("x_embedder.proj.weight", "a DiT"),
        ("down_blocks.0.resnets.0.conv1.weight", "diffusers"),
        ("model.diffusion_model.input_blocks.0.0.weight", "latent diffusion"),
        ("double_blocks.0.img_attn.qkv.weight", "Flux"),
        ("joint_blocks.0.x_block.attn.qkv.weight", "MMDiT"),
        ("all_modules.0.weight", "score_sde"),
        ("model.downs.0.0.weight", "denoising-diffusion-pytorch"),
        ("inner_model.proj_in.weight", "k-diffusion"),
        ("model.map_noise.freqs", "format edm"),
        ("net.input_blocks.0.0.weight", r"begin with net \(1 names\); .* --key=PREFIX"),
    ],
)
def test_a_state_dict_of_another_family_is_named(name, family):
    with pytest.raises(ValueError, match=f"expected a diffusion model of openai.*{family}"):
        adm.convert({name: zeros(2)})


def test_a_consistency_model_and_improved_diffusion_are_named():
    state = state_of(UNCONDITIONAL)
    attention = next(name for name in state if name.endswith(".qkv.weight"))
    flat = {**state, attention: of_array(state[attention].read(())[..., None])}
    with pytest.raises(ValueError, match="openai/consistency_models.*take the teacher from NVlabs"):
        adm.convert(flat, {**OTHERS, "split_first": True})
    with pytest.raises(ValueError, match=r"openai/improved-diffusion.*docs/extending.md"):
        adm.convert({**state, "input_blocks.2.0.op.weight": zeros(1)}, OTHERS)


@pytest.mark.parametrize(
    ("class_name", "message"),
    [
        ("Precond", r"EDM2 \(NVlabs/edm2\).* is not supported; it has no reader here"),
        ("VPPrecond", "baseline-.*-vp files .*: take one of the files named edm-"),
        ("iDDPMPrecond", "iDDPM preconditioning, which is not supported: take one of"),
        ("Generator", "that is StyleGAN, which is not supported"),
        ("UNet2", "the class 'UNet2' is of no family that is known here"),
    ],
)
def test_a_pickle_of_another_family_is_named_also_with_arrays_of_numpy_2(
    class_name, message, tmp_path
):
    path = tmp_path / "net.pkl"
    described = network(STATE, class_name, _init_kwargs=OPTIONS, sigma_grid=ARRAY)
    path.write_bytes(dump({"ema": described, "encoder": {"scale": ARRAY}}))
    with pytest.raises(ValueError, match=f"is a {class_name}; expected EDMPrecond: .*{message}"):
        TEACHERS["edm"](path)


def test_every_family_of_classes_gives_a_sentence():
    for name in families.CLASSES:
        assert "is not supported" in families.of_class(name)


def test_a_student_of_sid_makes_one_call_at_the_given_noise_level(tmp_path):
    imported = TEACHERS["edm"](pickled(tmp_path), None, {"init_sigma": 2.5})
    source = {"format": "edm", "file": "edm.pkl", "sha256": "0"}
    student = load(writer.write(imported, source, None, tmp_path / "out"))
    assert (student.trained.num_steps, student.trained.all_times) == (1, False)
    (t,) = student.trained.sampler.times
    logsnr = student.network_spec.schedule.logsnr(jnp.float32(t))
    np.testing.assert_allclose(np.exp(-logsnr / 2), 2.5, rtol=1e-4)
    with pytest.raises(ValueError, match=r"--set init_sigma is 100; expected a number from 0.002"):
        TEACHERS["edm"](pickled(tmp_path), None, {"init_sigma": 100})


def test_values_of_flags_are_numbers_words_and_lists():
    texts = ("side=64", "split_first=True", "schedule=ddpm", "rate=1e-3", "many=[1, 2]", "x=a=b")
    assert given.parse(texts) == {
        "side": 64,
        "split_first": True,
        "schedule": "ddpm",
        "rate": 1e-3,
        "many": [1, 2],
        "x": "a=b",
    }
    for wrong in (("side",), ("=1",), ("a b=1",), ("a=1", "a=2"), ("key=ema",)):
        with pytest.raises(ValueError, match="is no KEY=VALUE, or its key occurs twice"):
            given.parse(wrong)
