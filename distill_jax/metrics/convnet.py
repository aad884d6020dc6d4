"""Features and labels from a small convolutional network trained on the dataset itself."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_jax.diffusion.pixels import normalise
from distill_jax.typing import Tree

# (channels, stride) of the 3x3 convolutions; the mean over the last one's pixels is the features.
LAYERS = ((32, 2), (64, 2), (128, 1), (128, 2))
EPOCHS, BATCH, LEARNING_RATE = 3, 128, 4e-3
MIN_UPDATES, MOST_EPOCHS = 300, 30  # Updates; fewer where they would be more than so many epochs.
ADAM = optax.scale_by_adam()
TURNS = 4  # Quarter turns, the classes of images without any.


class ConvNet:
    """The feature network where images are too large for a perceptron: see features.Classifier.

    Without labels it learns to tell by how many quarter turns an image was rotated (Gidaris et al.
    2018, arXiv:1803.07728), which needs features of what is to be seen as well.

    Whatever the devices of a run are, it is trained and used on the CPU in float32, so that a
    distance means the same everywhere: accelerators multiply with fewer bits.

    Args:
      x: training images (n, h, w, c), square, float32 in [-1, 1] or uint8.
      label: their classes (n,), None where there are none.
      seed: of its initialisation and order; the protocol's is 0.
      least: updates of small data; the protocol's is MIN_UPDATES.
    """

    def __init__(
        self, x: np.ndarray, label: np.ndarray | None, seed: int = 0, least: int = MIN_UPDATES
    ):
        rng = np.random.default_rng(seed)
        classes = TURNS if label is None else int(label.max()) + 1
        updates = _updates(len(x), least)
        with _on_cpu():
            self._params = _init(jax.random.key(seed), x.shape[-1], classes)
            state = ADAM.init(self._params)
            orders = np.array_split(_orders(rng, len(x), updates * BATCH), updates)
            for step, order in enumerate(orders):
                images, target = x[order], None if label is None else label[order]
                if target is None:
                    target = rng.integers(0, TURNS, len(order))
                    images = _turned(images, target)
                rate = np.float32(LEARNING_RATE * (1 - step / updates))
                self._params, state = _update(self._params, state, images, target, rate)

    def features(self, x: np.ndarray) -> np.ndarray:
        """The mean activations of the last layer, (n, 128)."""
        return self._batched(_features, x)

    def accuracy(self, x: np.ndarray, label: np.ndarray) -> float:
        """The fraction of images that it puts into the class they are meant to show."""
        return float(np.mean(self._batched(_logits, x).argmax(-1) == label))

    def rotation_accuracy(self, x: np.ndarray) -> float:
        """Without labels: the fraction of images whose turn it tells, a quarter by chance."""
        turns = np.arange(len(x)) % TURNS
        return self.accuracy(_turned(x, turns), turns)

    def _batched(self, function: jax.stages.Wrapped, x: np.ndarray, size: int = 500) -> np.ndarray:
        """The function of all images, `size` at a time."""
        with _on_cpu():
            parts = [function(self._params, x[i : i + size]) for i in range(0, len(x), size)]
        return np.concatenate([np.asarray(part) for part in parts])


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    """Computes on the CPU in float32; with a warning elsewhere, where JAX was given no CPU."""
    try:
        device = jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        warnings.warn(
            "the feature network runs on the accelerator, for JAX has no CPU here: distances are "
            "not quite those of other machines; add cpu to JAX_PLATFORMS, such as cuda,cpu",
            stacklevel=4,
        )
        device = None
    with jax.default_device(device), jax.default_matmul_precision("highest"):
        yield


def _updates(n: int, least: int) -> int:
    """As many as EPOCHS of n images are, and of small data up to `least`."""
    return max(1, EPOCHS * n // BATCH, min(least, MOST_EPOCHS * n // BATCH))


def _turned(x: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Images, each rotated by so many quarter turns."""
    return np.stack([np.rot90(image, k) for image, k in zip(x, turns, strict=True)])


def _orders(rng: np.random.Generator, n: int, count: int) -> np.ndarray:
    """`count` indices below n, every epoch a permutation."""
    return np.concatenate([rng.permutation(n) for _ in range(-(-count // n))])[:count]


def _init(key: jax.Array, channels: int, classes: int) -> Tree:
    """(kernel, bias) of each layer, and of the classifier, which starts at 0."""
    params, normal = [], jax.nn.initializers.he_normal()
    for i, (width, _) in enumerate(LAYERS):
        kernel = normal(jax.random.fold_in(key, i), (3, 3, channels, width))
        params.append((kernel, jnp.zeros(width)))
        channels = width
    return [*params, (jnp.zeros((channels, classes)), jnp.zeros(classes))]


@jax.jit
def _features(params: Tree, x: jax.Array) -> jax.Array:
    """Means over pixels of the last convolution, (n, 128)."""
    h = normalise(x)
    for (kernel, bias), (_, stride) in zip(params[:-1], LAYERS, strict=True):
        h = jax.lax.conv_general_dilated(
            h, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = jax.nn.relu(h + bias)
    return h.mean(axis=(1, 2))


@jax.jit
def _logits(params: Tree, x: jax.Array) -> jax.Array:
    """Logits of the classes, (n, classes)."""
    kernel, bias = params[-1]
    return _features(params, x) @ kernel + bias


@jax.jit
def _update(
    params: Tree, state: Any, x: jax.Array, label: jax.Array, rate: jax.Array
) -> tuple[Tree, Any]:
    """One step of Adam on the cross-entropy."""

    def loss(params: Tree) -> jax.Array:
        logits = _logits(params, x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

    updates, state = ADAM.update(jax.grad(loss)(params), state, params)
    return jax.tree.map(lambda p, u: p - rate * u, params, updates), state
