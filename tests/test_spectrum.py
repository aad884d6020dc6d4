import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from distill_jax.data import DATASETS
from distill_jax.diffusion.pixels import normalise
from distill_jax.diffusion.schedule import SCHEDULES, Cosine, Karras, RectifiedFlow
from distill_jax.diffusion.spectrum import propose, rapsd, sufficient_time
from distill_jax.run.fits import CodecFit
from distill_jax.sampling.codecs import CODECS
from distill_jax.spectrum import encoded
from tests.test_commands import CONFIG, run
from tests.toys import ROOT

POWER = 4.0 / np.maximum(np.arange(17), 1) ** 2  # P(k) = (2 / k)^2 of images of side 32.


def test_white_noise_has_its_variance_at_every_frequency():
    x = 0.5 * np.random.default_rng(0).standard_normal((2000, 8, 8, 3))
    # The smallest ring, k = 0, has 6,000 values: a standard error of 2 %.
    np.testing.assert_allclose(rapsd(x), 0.25, rtol=0.06)


@pytest.mark.parametrize(("side", "k"), [(8, 1), (8, 3), (8, 4), (9, 2)])
def test_a_wave_has_power_only_at_its_own_frequency(side, k):
    wave = np.cos(2 * np.pi * k * np.arange(side) / side)
    power = rapsd(np.broadcast_to(wave[:, None, None], (1, side, side, 1)))
    assert len(power) == side // 2 + 1
    assert power[k] > 0.1
    np.testing.assert_allclose(np.delete(power, k), 0, atol=1e-12)


def test_images_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match=r"images are \(4, 6, 3\); a spectrum by radius"):
        rapsd(np.zeros((1, 4, 6, 3)))


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("side", [4, 8, 16])
def test_a_side_suffices_once_noise_hides_the_first_frequency_it_lacks(name, side):
    schedule = SCHEDULES[name]()
    time = sufficient_time(POWER, schedule, side)
    level = schedule.sigma(jnp.asarray(time)) / schedule.alpha(jnp.asarray(time))
    # k is the first whole ring beyond side / 2, where the noise level has to be 2 / k.
    np.testing.assert_allclose(level, 2 / (side // 2 + 1), rtol=1e-4)


def test_the_full_side_always_suffices_and_a_small_one_never_without_noise():
    assert sufficient_time(POWER, RectifiedFlow(), 32) == 0
    assert sufficient_time(POWER, Karras(sigma_max=0.3), 8) == np.inf


def test_each_step_has_the_smallest_side_that_suffices_when_its_x_is_noised_again():
    # Sides 4, 8 and 16 suffice from the levels 2 / 3, 2 / 5 and 2 / 9: t = .4, .29 and .18.
    times, resolutions = propose(POWER, RectifiedFlow(), (4, 8, 16, 32), 4)
    np.testing.assert_allclose(times, (1.0, 0.75, 0.5, 0.25))
    assert resolutions == (4, 4, 16, 32)
    assert propose(POWER, RectifiedFlow(), (4, 8, 32), 3)[1] == (4, 8, 32)
    assert propose(POWER, RectifiedFlow(), (4, 32), 1) == ((1.0,), (32,))


@pytest.mark.parametrize("resolutions", [(), (8, 4, 32), (8, 16), (8, 8, 32)])
def test_sides_that_do_not_grow_to_the_full_side_are_refused(resolutions):
    with pytest.raises(ValueError, match="expected growing ones, the last one 32"):
        propose(POWER, Cosine(), resolutions, 2)


def test_latents_are_those_of_a_codec_that_is_fitted_or_finished(tmp_path):
    data = DATASETS["shapes"](count=64, tests=16)
    images = normalise(data.images("train").x)
    options = {"name": "patch_pca", "patch": 2, "channels": 3}
    codec = CODECS["patch_pca"](patch=2, channels=3)
    expected = codec.encode(codec.fit(images), jnp.asarray(images), None)
    found = encoded(options, data, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    CodecFit(options, epath.Path(tmp_path / "codec"), data).finish()
    again = encoded({"path": str(tmp_path / "codec")}, data, images)
    np.testing.assert_allclose(again, expected, rtol=0, atol=1e-5)


def test_the_command_measures_latents_of_a_config_with_a_codec(tmp_path):
    config = f"--config={ROOT / 'configs' / 'shapes_swd.py'}:smoke"
    code, stdout, stderr = run("spectrum", config, f"--out={tmp_path / 'x.png'}", "--num=64")
    assert code == 0, stderr
    assert "sides=(4, 8)," in stdout


def test_the_command_prints_what_to_paste_and_draws(tmp_path):
    out = tmp_path / "spectrum.png"
    code, stdout, stderr = run(
        "spectrum", CONFIG, "--resolutions=4", "--num_steps=2", f"--out={out}"
    )
    assert code == 0, stderr
    assert "times=(1.0, 0.5),\nsides=(4, 8)," in stdout
    assert out.exists()
