"""Foreign state dictionaries and inputs by the rule that golden outputs were computed with.

The golden values are outputs of the released PyTorch code in float32 on a CPU, its parameters
filled by `fill` from their names and shapes.
"""

import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.storage.weights import of_array


def fill(name, shape):
    """Returns scaled sin(0.37 k^2 + h), k the flat index, h the sum of the name's bytes modulo 97.

    Kernels to unit variance of the output, biases by 0.1, scales of normalisations the same and
    around 1, Fourier frequencies by 16. In float64, rounded to float32.
    """
    k = np.arange(int(np.prod(shape)), dtype=np.float64)
    wave = np.sin(0.37 * k * k + sum(name.encode()) % 97).reshape(shape)
    if name.endswith("freqs"):
        value = 16 * wave
    elif len(shape) == 1:
        value = name.endswith("weight") + 0.1 * wave
    else:
        value = wave * np.sqrt(2 / np.prod(shape[1:]))
    return value.astype(np.float32)


def filled_state(listing):
    return {name: of_array(fill(name, shape)) for name, shape in listing.items()}


def arrays(params):
    """Reads a tree of Stored."""
    return jax.tree.map(lambda leaf: leaf.read(()), params)


def digest(listing):
    """Returns the number of arrays, and a checksum of their sorted names and shapes."""
    lines = sorted(f"{name} {tuple(shape)}" for name, shape in listing.items())
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def size(listing):
    return sum(int(np.prod(shape)) for shape in listing.values())


def image():
    """Returns images (2, 8, 8, 3) of sin(0.1 k), k the flat index."""
    return jnp.asarray(np.sin(0.1 * np.arange(2 * 8 * 8 * 3)).reshape(2, 8, 8, 3), jnp.float32)


def assert_golden(output, mean, std, first, second):
    """Compares mean and standard deviation of a pair of outputs, and two of their pixels.

    Two libraries sum in different orders: their outputs of unit size differ by up to 8e-6.
    """
    np.testing.assert_allclose([output.mean(), output.std()], [mean, std], atol=2e-6)
    np.testing.assert_allclose(output[0, 0, 0], first, atol=1e-5)
    np.testing.assert_allclose(output[1, 5, 3], second, atol=1e-5)
