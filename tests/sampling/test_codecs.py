import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distill_jax.data import DATASETS
from distill_jax.diffusion.spec import DataSpec, Leaf, label_leaf
from distill_jax.sampling.codecs import PIXELS, Codec, Fitted, PatchPca

DIGITS = DATASETS["digits"]()
COLOUR = DataSpec(Leaf((6, 4, 3)), cond=(("label", label_leaf(3)),))


def fitted(kind, images=DIGITS.train.x, data=DIGITS.spec):
    return Fitted(kind, kind.fit(images), data)


def test_with_all_components_nothing_is_lost():
    for codec, x in (
        (fitted(PatchPca(2)), jnp.asarray(DIGITS.test.x)),
        (PIXELS, jnp.asarray(DIGITS.test.x)),
    ):
        assert isinstance(codec, Codec)
        np.testing.assert_allclose(codec.decode(codec.encode(x)), x, atol=2e-6)


def test_patches_of_colour_images_keep_their_places():
    """Each latent is a function of its own patch, and decoding puts it back there."""
    x = jax.random.uniform(jax.random.key(0), (50, 6, 4, 3), minval=-1)
    codec = fitted(PatchPca(2), np.asarray(x), COLOUR)
    z = codec.encode(x)
    assert z.shape == (50, 3, 2, 12) == (50, *codec.kind.latents(COLOUR).x.shape)
    changed = codec.encode(x.at[0, 4:6, 0:2].set(0.5)) != z
    assert changed[0, 2, 0].any()
    assert not changed.at[0, 2, 0].set(False).any()
    np.testing.assert_allclose(codec.decode(z), x, atol=2e-6)


def test_latents_are_uncorrelated_and_of_unit_variance():
    z = np.asarray(fitted(PatchPca(4)).encode(jnp.asarray(DIGITS.train.x)), np.float64).reshape(
        -1, 16
    )
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(z, rowvar=False, bias=True), np.eye(16), atol=2e-3)


def test_components_that_are_left_out_are_those_of_least_variance():
    """The mean square error is the sum of the dropped variances (Eckart & Young)."""
    x = DIGITS.train.x
    whole, part = (fitted(PatchPca(2, channels)) for channels in (0, 2))
    left_out = (whole.params["scale"][2:].astype(np.float64) ** 2).sum() / 4
    z = part.encode(jnp.asarray(x))
    back = z * part.params["scale"] @ part.params["basis"].T + part.params["mean"]
    patches = x.reshape(-1, 4, 2, 4, 2).swapaxes(2, 3).reshape(-1, 4, 4, 4)
    np.testing.assert_allclose(np.mean((back - patches) ** 2), left_out, rtol=1e-4)
    np.testing.assert_array_equal(part.params["scale"], whole.params["scale"][:2])


def test_latents_are_never_bounded_and_keep_the_conditions():
    spec = PatchPca(2, 5).latents(COLOUR)
    assert (spec.x.shape, spec.bounded, spec.cond) == ((3, 2, 5), False, COLOUR.cond)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (PatchPca(3), r"codec.patch is 3, and images are 6x4; expected a divisor"),
        (PatchPca(0), r"codec.patch is 0"),
        (PatchPca(2, 13), r"codec.channels is 13; .* have 12 components"),
        (PatchPca(2, -1), r"codec.channels is -1"),
    ],
)
def test_a_codec_that_does_not_fit_the_images_is_refused(kind, message):
    with pytest.raises(ValueError, match=message):
        kind.latents(COLOUR)


def test_images_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"shape \(8, 8, 3\); the codec takes \(8, 8, 1\)"):
        fitted(PatchPca(2)).encode(jnp.zeros((1, 8, 8, 3)))
