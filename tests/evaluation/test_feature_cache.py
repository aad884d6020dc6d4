"""Features of real images are computed once for the same images, network, weights and resize."""

import time

import numpy as np
import pytest

from distill_jax.evaluation import feature_cache
from distill_jax.evaluation.feature_cache import pooled_features
from distill_jax.evaluation.feature_networks import FeatureNetwork, load_network
from tests.evaluation.test_quality import pictures

IMAGES = pictures(70)


@pytest.fixture(scope="module")
def network(small_file):
    return load_network("small", small_file)


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Returns the list of networks that computed features, with an empty cache."""
    found, call = [], FeatureNetwork.__call__
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        FeatureNetwork, "__call__", lambda self, x: found.append(self) or call(self, x)
    )
    return found


def entries(tmp_path):
    return sorted((tmp_path / "distill_jax" / "references").glob("*"))


def test_features_are_computed_once_and_kept_in_a_folder_of_the_user(network, calls, tmp_path):
    first = pooled_features(IMAGES, network)
    np.testing.assert_array_equal(first, network([IMAGES])["pooled"])
    calls.clear()
    np.testing.assert_array_equal(pooled_features(IMAGES, network), first)
    floats = IMAGES.astype(np.float32) / 127.5 - 1
    np.testing.assert_array_equal(pooled_features(floats, network), first)
    assert calls == []
    (path,) = entries(tmp_path)
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_other_images_weights_or_resizes_have_entries_of_their_own(
    network, calls, tmp_path, small_file
):
    pooled_features(IMAGES, network)
    other = IMAGES.copy()
    other[-1, -1, -1, -1] ^= 1
    pooled_features(other, network)
    resized = load_network("small", small_file, method="tf1")
    found = pooled_features(IMAGES, resized)
    np.testing.assert_array_equal(found, resized([IMAGES])["pooled"])
    arrays = dict(np.load(small_file))
    np.savez(tmp_path / "other.npz", **{name: array / 2 for name, array in arrays.items()})
    pooled_features(IMAGES, load_network("small", tmp_path / "other.npz"))
    assert len(entries(tmp_path)) == 4


def flipped(content):
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :]


@pytest.mark.parametrize("damage", [flipped, lambda content: content[:-50], lambda content: b""])
def test_a_damaged_entry_is_made_again(network, calls, tmp_path, capsys, damage):
    first = pooled_features(IMAGES, network)
    (path,) = entries(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    np.testing.assert_array_equal(pooled_features(IMAGES, network), first)
    assert "is damaged and made again" in capsys.readouterr().out
    assert path.read_bytes() == whole


def test_an_entry_of_other_images_under_this_name_does_not_count(network, calls, tmp_path):
    first = pooled_features(IMAGES, network)
    (path,) = entries(tmp_path)
    pooled_features(pictures(70, seed=9), network)
    (other,) = set(entries(tmp_path)) - {path}
    other.replace(path)
    np.testing.assert_array_equal(pooled_features(IMAGES, network), first)


def test_a_folder_that_others_can_write_is_not_used(network, calls, tmp_path, capsys):
    pooled_features(IMAGES, network)
    (path,) = entries(tmp_path)
    path.parent.chmod(0o777)
    pooled_features(IMAGES, network)
    assert len(calls) == 2
    assert "are not kept: " in capsys.readouterr().out


def test_the_oldest_entries_are_removed(network, calls, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "MAX_ENTRIES", 2)
    for seed in range(3):
        pooled_features(pictures(20, seed=seed), network)
        time.sleep(0.02)  # The clock of files has ticks of some milliseconds.
    assert len(entries(tmp_path)) == 2
    calls.clear()
    pooled_features(pictures(20, seed=2), network)
    assert calls == []
