"""Tests of the parts of EDM's and ADM's UNets; tests/teachers compares their outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.diffusion.schedule import Cosine, Karras, RectifiedFlow
from distill_jax.diffusion.spec import image_spec
from distill_jax.models.adm_unet import AdmArchitecture, adm_unet
from distill_jax.models.layers import cosines_and_sines
from distill_jax.models.residual_unet import downsample, noise_level, upsample
from distill_jax.models.song_unet import SongArchitecture, song_unet
from tests.toys import filled

SIZES = image_spec((4, 6, 3), 3, 3)
SMALL = {"channels": 8, "multipliers": (1,), "blocks": 1, "attention": (4,)}
Z = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
T = jnp.asarray([0.2, 0.7])
LABEL = {"label": jnp.asarray([0, 2], jnp.int32)}


def params_of(network):
    return filled(jax.eval_shape(network.init, jax.random.key(0), Z, T, LABEL))


def test_the_shortest_filter_takes_means_and_copies():
    means = Z.reshape(2, 2, 2, 3, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(downsample(Z, (1, 1)), means, atol=1e-6)
    np.testing.assert_array_equal(upsample(Z, (1, 1)), Z.repeat(2, axis=1).repeat(2, axis=2))


def test_a_longer_filter_weighs_four_pixels_one_three_three_one():
    row = jnp.arange(1.0, 7.0).reshape(1, 1, 6, 1)
    row = row.repeat(2, axis=1)
    # With zeros beyond the border: (0 + 3 1 + 3 2 + 3) / 8 along a row, 6 / 8 across two rows.
    expected = np.asarray([(0 + 3 + 6 + 3), (2 + 9 + 12 + 5), (4 + 15 + 18 + 0)]) / 8
    np.testing.assert_allclose(downsample(row, (1, 3, 3, 1))[0, 0, :, 0], 0.75 * expected)
    # An upsampled pixel is three quarters of the nearest pixel and one quarter of the next.
    wide = upsample(row, (1, 3, 3, 1))[0, 1, :, 0]
    np.testing.assert_allclose(wide[1:5], [1.25, 1.75, 2.25, 2.75])
    np.testing.assert_allclose([wide[0], wide[-1]], [0.75, 4.5])


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1)])
def test_upsampling_is_four_times_the_adjoint_of_downsampling(taps):
    small = jax.random.normal(jax.random.key(1), (2, 2, 3, 3))
    np.testing.assert_allclose(
        4 * jnp.vdot(downsample(Z, taps), small), jnp.vdot(Z, upsample(small, taps)), rtol=1e-5
    )


@pytest.mark.parametrize("schedule", [Karras(), Cosine()], ids=repr)
def test_the_noise_level_is_a_quarter_of_the_log_of_sigma_over_alpha(schedule):
    spec = SongArchitecture(SIZES._replace(schedule=schedule), **SMALL)
    t = jnp.linspace(0.01, 0.99, 9)
    expected = jnp.log(schedule.sigma(t) / schedule.alpha(t)) / 4
    np.testing.assert_allclose(noise_level(spec, t), expected, atol=1e-6)


def test_the_noise_level_is_finite_where_a_schedule_is_not():
    spec = SongArchitecture(SIZES._replace(schedule=RectifiedFlow()), **SMALL)
    np.testing.assert_allclose(noise_level(spec, jnp.asarray([0.0, 1.0])), [-2.5, 2.5])


def test_cosines_come_before_sines_and_frequencies_end_before_1e_4():
    # 10000^(-k / 2) for k = 0, 1 is 1, 0.01.
    expected = np.concatenate([np.cos([999, 9.99]), np.sin([999, 9.99])])
    np.testing.assert_allclose(cosines_and_sines(jnp.asarray([999.0]), 4)[0], expected, atol=2e-5)


def test_bfloat16_keeps_float32_parameters_and_output_and_agrees():
    single, half = (adm_unet(SIZES, **SMALL, heads=2, dtype=d) for d in ("float32", "bfloat16"))
    params = params_of(single)
    shapes = jax.eval_shape(half.init, jax.random.key(0), Z, T, LABEL)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    a, b = (jax.jit(network.apply)(params, Z, T, LABEL) for network in (single, half))
    assert b.dtype == jnp.float32
    # bfloat16 has 8 bits: a few per cent of the output's standard deviation.
    assert 0 < float(jnp.abs(a - b).max()) < 0.2 * float(a.std())


def test_recomputation_does_not_change_the_names_of_parameters():
    once, again = (song_unet(SIZES, **SMALL, remat=remat) for remat in ("none", "full"))
    params = params_of(once)
    assert jax.tree.structure(params) == jax.tree.structure(params_of(again))
    assert "remat" in str(jax.make_jaxpr(again.apply)(params, Z, T, LABEL))


def test_dropout_needs_a_key_and_changes_with_it():
    network = song_unet(SIZES, **SMALL, dropout=0.5)
    params, apply = params_of(network), jax.jit(network.apply)
    none = apply(params, Z, T, LABEL)
    one, other = (apply(params, Z, T, LABEL, jax.random.key(i)) for i in range(2))
    assert min(float(jnp.abs(a - b).max()) for a, b in ((one, other), (one, none))) > 1e-3


def test_labels_of_augmented_images_are_a_condition_that_is_absent_at_zero():
    network = song_unet(SIZES, **SMALL, augment=True)
    params, apply = params_of(network), jax.jit(network.apply)
    assert params["augment_embed"]["kernel"].shape == (9, 8) and len(params["augment_embed"]) == 1
    none, zero, some = (
        apply(params, Z, T, {**LABEL, **given})
        for given in ({}, {"augment": jnp.zeros((2, 9))}, {"augment": jnp.eye(9)[:2]})
    )
    np.testing.assert_array_equal(none, zero)
    assert float(jnp.abs(some - none).max()) > 1e-3
    del params["augment_embed"]
    plain = song_unet(SIZES, **SMALL).apply(params, Z, T, LABEL)
    np.testing.assert_allclose(plain, none, atol=1e-5)


def test_fixed_frequencies_get_no_gradient():
    network = song_unet(SIZES, **SMALL, embedding="fourier")
    params = params_of(network)

    def loss(frequencies):
        output = network.apply({**params, "frequencies": frequencies}, Z, T, LABEL)
        return jnp.sum(output**2)

    value, grad = jax.jit(jax.value_and_grad(loss))(params["frequencies"])
    assert float(value) > 0
    np.testing.assert_array_equal(grad, jnp.zeros_like(grad))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (SongArchitecture, {"dtype": "float16"}, "dtype is 'float16'"),
        (AdmArchitecture, {"remat": "all"}, "remat is 'all'; expected one of none, dots, full"),
        (SongArchitecture, {"dropout": 1.0}, "dropout is 1.0"),
        (SongArchitecture, {"channels": 7}, "channels is 7"),
        (SongArchitecture, {"multipliers": (1, 1, 1)}, "the image is 4x6; 3 levels halve"),
        (SongArchitecture, {"attention": (16,)}, r"attention is \(16,\); .* have: 4"),
        (SongArchitecture, {"embedding": "learned"}, "embedding is 'learned'"),
        (SongArchitecture, {"filter": (1, 2, 1)}, r"filter is \(1, 2, 1\)"),
        (AdmArchitecture, {"noise_input": "t"}, "noise_input is 't'"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(SIZES, **{**SMALL, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "3 heads do not divide 8 channels"),
        ({}, "0 heads do not divide 8 channels"),
        ({"heads": 1, "channels": 130}, "a layer has 130 channels, which 32 groups do not divide"),
    ],
)
def test_heads_and_groups_that_do_not_divide_the_channels_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        params_of(adm_unet(SIZES, **{**SMALL, **options}))
