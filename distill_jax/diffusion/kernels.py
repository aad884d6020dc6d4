"""Distances between the features of paired images, real and generated: MMD losses.

Features are (b, n, c): n positions of c channels for each of b images. Every distance is taken
within an image, between its n real and its n generated features, and averaged over the images. It
is not negative, and 0 where real and generated features are the same. Starodubcev et al. 2026,
arXiv:2503.16397, section 3.2 and equation 2; their code for the variants.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

ROUND = 1e-3  # Distances below it are rounded off, so that gradients exist at 0.


def pseudo_huber(real: jax.Array, fake: jax.Array) -> jax.Array:
    """sqrt(d^2 + r^2) - r of d = mean_n real - mean_n fake, a mean over channels: the code's.

    Their `mmd_loss_` calls it linear; its weight there is 1. Like |d| where |d| is above r = 1e-3,
    so the gradient in d is at most 1 / c, whatever d is.
    """
    return jnp.mean(_rounded(_means(real, fake) ** 2) - ROUND)


def linear(real: jax.Array, fake: jax.Array) -> jax.Array:
    """|mean_n real - mean_n fake|^2, a sum over channels: equation 2 of the paper.

    The weight 1 is not for it: its gradient in d is 2 d, that of `pseudo_huber` 1 / c, so a weight
    of 1 / (2 c |d|) makes them alike; 1 / 150 for 256 channels and differences of 0.3.
    The linear kernel sees means alone. As each generated image stands beside its real one, this
    is a regression of mean features, not a distance between distributions of images.
    """
    return jnp.mean(jnp.sum(_means(real, fake) ** 2, axis=-1))


def rbf(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The squared MMD of the kernel exp(-|f - g|^2 / 2 c), c channels.

    The bandwidth, sqrt(c), is the distance of features of order 1. The paper's code has 100, for
    the features of its network, and leaves the pairs of a feature with itself out, which makes the
    distance of equal features negative.
    """
    return _mmd(real, fake, lambda squared: jnp.exp(-squared / (2 * real.shape[-1])))


def energy(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The energy distance 2 E|x - y| - E|x - x'| - E|y - y'|, x real, y generated features.

    |.| is sqrt(|.|^2 + r^2), r = 1e-3, whose energy distance is not negative either and whose
    gradient exists everywhere (Micchelli 1986, doi:10.1007/BF01893414).
    """
    return _mmd(real, fake, lambda squared: -_rounded(squared))


KERNELS = {"pseudo_huber": pseudo_huber, "linear": linear, "rbf": rbf, "energy": energy}


def _mmd(real: jax.Array, fake: jax.Array, kernel: Callable) -> jax.Array:
    """mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over all pairs, of a feature with itself too.

    Gretton et al. 2012 (JMLR 13), equation 5: the V-statistic is a squared norm, so it is >= 0.
    """
    real, fake = _float32(real), _float32(fake)
    # Distances stay, and squares of large numbers are not subtracted.
    center = jnp.mean(real, axis=1, keepdims=True)
    real, fake = real - center, fake - center

    def mean(f: jax.Array, g: jax.Array) -> jax.Array:
        return jnp.mean(kernel(_squared(f, g)))

    return mean(real, real) + mean(fake, fake) - 2 * mean(real, fake)


def _squared(f: jax.Array, g: jax.Array) -> jax.Array:
    """|f_i - g_j|^2, (b, n, n)."""
    product = jnp.einsum("bic,bjc->bij", f, g, precision="highest")
    norms = jnp.sum(f**2, axis=-1)[:, :, None] + jnp.sum(g**2, axis=-1)[:, None]
    return jnp.maximum(norms - 2 * product, 0.0)


def _rounded(squared: jax.Array) -> jax.Array:
    """sqrt(squared + r^2): a distance with a gradient at 0."""
    return jnp.sqrt(squared + ROUND**2)


def _means(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Difference of the position means, (b, c)."""
    return jnp.mean(_float32(real) - _float32(fake), axis=1)


def _float32(features: jax.Array) -> jax.Array:
    """The features in float32, or in what they are where that is wider."""
    return features.astype(jnp.promote_types(features.dtype, jnp.float32))
