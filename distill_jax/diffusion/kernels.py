"""Distances between the features of paired images, real and generated: MMD losses.

Features are (b, n, c): n positions of c channels for each of b images. A distance compares the n
real features of an image with its n generated features, and is averaged over the images. It is
never negative, and 0 if both are equal. Starodubcev et al. 2026, arXiv:2503.16397, section 3.2 and
equation 2; the variants are in their code.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

SMOOTHING = 1e-3  # sqrt(d^2 + SMOOTHING^2) replaces |d|, so that gradients exist at d = 0.


def pseudo_huber(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Returns the mean over channels of sqrt(d^2 + r^2) - r, d = mean_n real - mean_n fake.

    The distance of the released code: `mmd_loss_` there calls it linear and has weight 1. It is
    close to |d| where |d| is above r = 1e-3, so its gradient in d is at most 1 / c for every d.
    """
    return jnp.mean(_smooth_root(_means(real, fake) ** 2) - SMOOTHING)


def linear(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Returns |mean_n real - mean_n fake|^2, summed over channels: equation 2 of the paper.

    It needs a smaller weight than `pseudo_huber`: its gradient in d is 2 d, the other's 1 / c, so a
    weight of 1 / (2 c |d|) makes them alike; 1 / 150 for 256 channels and differences of 0.3. The
    linear kernel compares only means. Each generated image is paired with its real one, so this is
    a regression of mean features, not a distance between distributions of images.
    """
    return jnp.mean(jnp.sum(_means(real, fake) ** 2, axis=-1))


def rbf(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Returns the squared MMD with the kernel exp(-|f - g|^2 / 2 c), c the number of channels.

    The bandwidth sqrt(c) is the typical distance between features of order 1. The paper's code uses
    100, for the features of its network. It also leaves out the pairs of a feature with itself,
    which makes the distance of equal features negative.
    """
    return _mmd(real, fake, lambda squared: jnp.exp(-squared / (2 * real.shape[-1])))


def energy(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Returns the energy distance 2 E|x - y| - E|x - x'| - E|y - y'|, x real, y generated.

    |.| is sqrt(|.|^2 + r^2), r = 1e-3, whose energy distance is not negative either and whose
    gradient exists everywhere (Micchelli 1986, doi:10.1007/BF01893414).
    """
    return _mmd(real, fake, lambda squared: -_smooth_root(squared))


KERNELS = {"pseudo_huber": pseudo_huber, "linear": linear, "rbf": rbf, "energy": energy}


def _mmd(real: jax.Array, fake: jax.Array, kernel: Callable) -> jax.Array:
    """Returns the V-statistic mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over all pairs.

    Gretton et al. 2012 (JMLR 13), equation 5. Pairs of a feature with itself are included, so the
    V-statistic is a squared norm and not negative.
    """
    real, fake = _float32(real), _float32(fake)
    # Centring keeps the distances and avoids cancellation between squares of large numbers.
    center = jnp.mean(real, axis=1, keepdims=True)
    real, fake = real - center, fake - center

    def mean(f: jax.Array, g: jax.Array) -> jax.Array:
        return jnp.mean(kernel(_squared(f, g)))

    return mean(real, real) + mean(fake, fake) - 2 * mean(real, fake)


def _squared(f: jax.Array, g: jax.Array) -> jax.Array:
    """Returns the squared distances |f_i - g_j|^2, (b, n, n)."""
    product = jnp.einsum("bic,bjc->bij", f, g, precision="highest")
    norms = jnp.sum(f**2, axis=-1)[:, :, None] + jnp.sum(g**2, axis=-1)[:, None]
    return jnp.maximum(norms - 2 * product, 0.0)


def _smooth_root(squared: jax.Array) -> jax.Array:
    """Returns sqrt(squared + r^2), a distance that has a gradient at 0."""
    return jnp.sqrt(squared + SMOOTHING**2)


def _means(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Returns the difference of the means over positions, (b, c)."""
    return jnp.mean(_float32(real) - _float32(fake), axis=1)


def _float32(features: jax.Array) -> jax.Array:
    """Casts features to float32, unless their dtype is wider."""
    return features.astype(jnp.promote_types(features.dtype, jnp.float32))
