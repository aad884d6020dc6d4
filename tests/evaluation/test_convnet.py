import jax
import numpy as np
import pytest

from distill_jax.evaluation import convnet
from distill_jax.evaluation.convnet import ConvNet
from distill_jax.metrics.frechet import frechet_distance, moments
from distill_jax.training.update import make_update

RNG = np.random.default_rng(0)


def stripes(count, kinds=4):
    """Returns uint8 images with stripes of one of four widths, and the number of the width."""
    label = RNG.integers(0, kinds, count).astype(np.int32)
    x = np.arange(16)[None, :] // (2 ** label[:, None]) % 2
    x = np.broadcast_to(x[:, None, :, None], (count, 16, 16, 3)) * 120
    return (x + RNG.integers(0, 120, x.shape)).astype(np.uint8), label


@pytest.fixture(scope="module")
def classifier(optimized):
    return ConvNet(*stripes(1000), least=0)


def test_the_classifier_tells_classes_apart(classifier):
    x, label = stripes(300)
    assert classifier.accuracy(x, label) > 0.9
    assert classifier.accuracy(x, (label + 1) % 4) < 0.1


def test_two_classifiers_of_images_alike_share_their_programs(classifier):
    update = make_update(convnet.PHASES, 0, convnet.STUDENT, convnet.ADAM)
    compiled = update._cache_size()
    x, label = stripes(1000)
    ConvNet(x, label, least=0)
    assert update._cache_size() == compiled > 0


def test_the_network_computes_on_the_cpu_in_float32_for_all_defaults(classifier, monkeypatch):
    seen, x = [], stripes(20)[0]

    @jax.jit
    def spy(params, images):
        seen.append((jax.config.jax_default_device, jax.config.jax_default_matmul_precision))
        return images, images

    monkeypatch.setattr(convnet, "_apply", spy)
    with jax.default_matmul_precision("bfloat16"):  # A TPU's default.
        classifier.features(x)
    assert seen == [(jax.local_devices(backend="cpu")[0], "highest")]
    missing = RuntimeError("Unknown backend cpu")
    monkeypatch.setattr(jax, "local_devices", lambda backend: (_ for _ in ()).throw(missing))
    with pytest.warns(UserWarning, match="the feature network runs on the accelerator"):
        classifier.features(x)


def test_bytes_and_floats_of_the_same_images_have_the_same_features(classifier):
    x, _ = stripes(20)
    floats = (x / 127.5 - 1).astype(np.float32)
    np.testing.assert_allclose(
        classifier.features(x), classifier.features(floats), rtol=1e-5, atol=1e-4
    )
    assert classifier.features(x).shape == (20, 128)


def test_the_distance_in_the_features_grows_with_noise(classifier):
    real = moments(classifier.features(stripes(500)[0]))
    distances = []
    for noise in (0, 40, 80):
        x, _ = stripes(500)
        damaged = np.clip(x + RNG.normal(scale=noise, size=x.shape), 0, 255).astype(np.uint8)
        distances.append(frechet_distance(real, moments(classifier.features(damaged))))
    assert distances[0] < distances[1] < distances[2]


def test_without_labels_the_network_learns_quarter_turns():
    x, _ = stripes(1000, kinds=1)
    x[..., 8:, :] //= 2  # Darker on the right: every turn looks different.
    classifier = ConvNet(x, None, least=0)
    turned = np.stack([np.rot90(image, k % 4) for k, image in enumerate(x[:200])])
    assert classifier.accuracy(turned, np.arange(200) % 4) > 0.9
    assert classifier.rotation_accuracy(x[:200]) == classifier.accuracy(turned, np.arange(200) % 4)


@pytest.mark.parametrize(
    ("n", "updates"), [(20, 4), (300, 70), (1280, 300), (12_800, 300), (50_000, 1171)]
)
def test_small_data_are_seen_more_often_than_large_ones(n, updates):
    assert convnet._updates(n, convnet.MIN_UPDATES) == updates


def test_the_classifier_of_few_images_is_trained_to_its_end():
    x, label = stripes(200)
    assert ConvNet(x[:100], label[:100]).accuracy(x[100:], label[100:]) > 0.9
