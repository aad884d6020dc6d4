"""Features and labels from a small convolutional network trained on the dataset itself."""

import contextlib
import operator
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_jax.diffusion.pixels import normalise
from distill_jax.methods import Phase
from distill_jax.training.loop import Cadence, Call, train
from distill_jax.training.update import Rates, make_update, new_state, optimizer
from distill_jax.typing import Batch, Tree

# (channels, stride) of the 3x3 convolutions; the mean over the last one's pixels is the features.
LAYERS = ((32, 2), (64, 2), (128, 1), (128, 2))
EPOCHS, BATCH, LEARNING_RATE = 3, 128, 4e-3
MIN_UPDATES, MOST_EPOCHS = 300, 30  # Small data get MIN_UPDATES, but at most MOST_EPOCHS epochs.
ADAM = optimizer(b1=0.9, b2=0.999, clip_norm=0.0)
TURNS = 4  # Number of quarter turns, which are the classes of images without labels.


class ConvNet:
    """The feature network for images that are too large for a perceptron: see features.Classifier.

    Without labels it learns to predict by how many quarter turns an image was rotated (Gidaris et
    al. 2018, arXiv:1803.07728), which needs features of the content, too.

    It always runs on the CPU in float32, whatever the devices of the run, so that distances are
    comparable: accelerators multiply with fewer bits.

    Args:
      x: training images (n, h, w, c), square, float32 in [-1, 1] or uint8.
      label: classes (n,) of the images, None without labels.
      least: number of updates for small data; MIN_UPDATES in the protocol.
    """

    def __init__(self, x: np.ndarray, label: np.ndarray | None, least: int = MIN_UPDATES):
        classes = TURNS if label is None else int(label.max()) + 1
        updates = _updates(len(x), least)
        rates = Rates(LEARNING_RATE, warmup=0, decay_to=0.0, steps=updates, ema_decay=0.0)
        update = make_update(PHASES, 0, STUDENT, ADAM)
        with _on_cpu():
            key = jax.random.key(0)
            state = train(
                lambda state, call: update(None, rates, state, {}, call.batches),
                new_state(key, {"student": _init(key, x.shape[-1], classes)}, ADAM),
                _calls(x, label, updates),
                Cadence(updates, log_every=updates, save_every=updates),
            )
        self._params = state.params["student"]

    def features(self, x: np.ndarray) -> np.ndarray:
        """Returns the mean activations of the last layer, (n, 128)."""
        return self._apply(x)[0]

    def accuracy(self, x: np.ndarray, label: np.ndarray) -> float:
        """Returns the fraction of images that are classified as their labels."""
        return float(np.mean(self._apply(x)[1].argmax(-1) == label))

    def rotation_accuracy(self, x: np.ndarray) -> float:
        """Returns, without labels, the fraction of correctly predicted turns; chance is 0.25."""
        turns = np.arange(len(x)) % TURNS
        return self.accuracy(_turned(x, turns), turns)

    def _apply(self, x: np.ndarray, size: int = 500) -> tuple[np.ndarray, ...]:
        """Returns features and logits of all images, computed `size` at a time."""
        with _on_cpu():
            parts = [_apply(self._params, x[i : i + size]) for i in range(0, len(x), size)]
        return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    """Computes on the CPU in float32, or on another device with a warning if JAX has no CPU."""
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
    """Returns the number of updates: EPOCHS epochs of n images, or for small data up to `least`."""
    return max(1, EPOCHS * n // BATCH, min(least, MOST_EPOCHS * n // BATCH))


def _turned(x: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Rotates each image by its number of quarter turns."""
    return np.stack([np.rot90(image, k) for image, k in zip(x, turns, strict=True)])


def _calls(x: np.ndarray, label: np.ndarray | None, updates: int) -> Iterator[Call]:
    """Yields a batch per update, from shuffled epochs; without labels, images are rotated."""
    rng = np.random.default_rng(0)
    epochs = [rng.permutation(len(x)) for _ in range(-(-updates * BATCH // len(x)))]
    for step, rows in enumerate(np.concatenate(epochs)[: updates * BATCH].reshape(-1, BATCH)):
        target = rng.integers(0, TURNS, BATCH) if label is None else label[rows]
        images = _turned(x[rows], target) if label is None else x[rows]
        classes = {"label": jnp.asarray(target)}
        batch = Batch(jnp.asarray(rows), jnp.asarray(images), classes, {})
        yield Call(range(step, step + 1), batch)


def _init(key: jax.Array, channels: int, classes: int) -> Tree:
    """Returns (kernel, bias) of each layer, and of the classifier, which starts at 0."""
    params, normal = [], jax.nn.initializers.he_normal()
    for i, (width, _) in enumerate(LAYERS):
        shape = 3, 3, channels, width
        params.append((normal(jax.random.fold_in(key, i), shape), jnp.zeros(width)))
        channels = width
    return [*params, (jnp.zeros((channels, classes)), jnp.zeros(classes))]


@jax.jit
def _apply(params: Tree, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the last convolution's means over pixels, (n, 128), and the logits."""
    h, (*layers, (weights, offset)) = normalise(x), params
    for (kernel, bias), (_, stride) in zip(layers, LAYERS, strict=True):
        h = jax.lax.conv_general_dilated(
            h, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        h = jax.nn.relu(h + bias)
    features = h.mean(axis=(1, 2))
    return features, features @ weights + offset


def cross_entropy(method: None, key: jax.Array, batch: Batch, params: Tree) -> tuple[Any, dict]:
    """Returns the mean cross-entropy of the images: the loss of the only phase."""
    _, logits = _apply(params, batch.x)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.cond["label"]).mean(), {}


PHASES, STUDENT = (Phase("student", cross_entropy),), operator.itemgetter("student")
