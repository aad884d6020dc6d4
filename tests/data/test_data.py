import itertools

import numpy as np
import pytest

from distill_jax.data import DATASETS, Dataset, Source
from distill_jax.data.arrays import Arrays
from distill_jax.data.base import Rows, check, summarise, with_labels_in_range
from distill_jax.diffusion.analytic import ring
from distill_jax.diffusion.pixels import normalise
from distill_jax.diffusion.spec import image_data

DIGITS = DATASETS["digits"]()


CAPTIONED = {"captioned_folder", "captioned_tfds", "prompts", "shapes"}


@pytest.fixture(params=sorted({*DATASETS} - CAPTIONED))
def data(request, pictures, prepared):
    """Every dataset in a small size."""
    options = {
        "folder": {"path": str(pictures), "size": 4},
        "mixture": {"count": 48},
        "noise": {"size": 2, "count": 30},
        "tfds": {"dataset": "pictures", "size": 4, "data_dir": str(prepared)},
    }
    return DATASETS[request.param](**options.get(request.param, {}))


def rows(batches):
    """Returns a comparable value per image, equal for its mirror image, and the labels."""
    x, label = (np.concatenate(column) for column in zip(*batches, strict=True))
    return [min(image.tobytes(), image[:, ::-1].tobytes()) for image in x], list(label)


def batch(data, seed, step, size, part=(0, 1)):
    return source(next(data.batches(seed, step, size, part)))


def source(rows):
    """Returns the images and labels of a batch."""
    return Source(rows.x, rows.cond["label"])


def test_images_lie_in_range_and_labels_below_the_number_of_classes(data):
    assert isinstance(data, Dataset)
    assert data.num_labels == data.num_classes > 1
    for x, label in (data.images("train"), data.images("test"), batch(data, 0, 0, 16)):
        assert x.dtype in (np.float32, np.uint8)
        assert label.dtype == np.int32
        assert x.shape == (len(label), *data.shape)
        seen = normalise(x)
        assert -1 <= seen.min() < -0.5 < 0.5 < seen.max() <= 1
        assert set(label) <= set(range(data.num_classes))
    assert set(data.images("train").label) == set(range(data.num_classes))


def test_held_out_images_are_no_training_images(data):
    train, test = (rows([data.images(split)])[0] for split in ("train", "test"))
    assert not set(train) & set(test)


def test_a_sample_of_images_is_fixed_and_part_of_all(data):
    every, sample, again = (data.images("train", num) for num in (None, 7, 7))
    np.testing.assert_array_equal(sample.x, again.x)
    assert len(sample.label) == 7
    known = set(zip(*rows([every]), strict=True))
    assert set(zip(*rows([sample]), strict=True)) <= known
    assert len(data.images("train", 10**6).label) == len(every.label)


def test_a_batch_is_a_function_of_seed_and_step(data):
    a, b = (batch(data, 3, 17, 12) for _ in range(2))
    np.testing.assert_array_equal(a.x, b.x)
    np.testing.assert_array_equal(a.label, b.label)
    assert not np.array_equal(a.x, batch(data, 3, 18, 12).x)
    assert not np.array_equal(a.x, batch(data, 4, 17, 12).x)


def test_batches_that_start_later_are_those_of_the_run_from_the_beginning(data):
    whole = list(map(source, itertools.islice(data.batches(2, 0, 8), 9)))
    later = list(map(source, itertools.islice(data.batches(2, 6, 8), 3)))
    for a, b in zip(whole[6:], later, strict=True):
        np.testing.assert_array_equal(a.x, b.x)
        np.testing.assert_array_equal(a.label, b.label)


def test_every_image_is_seen_once_in_each_epoch_with_its_label(data):
    known = dict(zip(*rows([data.images("train")]), strict=True))
    n = len(data.images("train").label)
    seen, label = rows(map(source, itertools.islice(data.batches(0, 0, n // 3), 6)))
    for epoch in (slice(0, n), slice(n, 2 * n)):
        assert sorted(seen[epoch]) == sorted(rows([data.images("train")])[0])
    assert [known[image] for image in seen] == label
    assert seen[:n] != seen[n:]


def test_a_batch_larger_than_the_data_is_made_of_several_epochs(data):
    n = len(data.images("train").label)
    seen, _ = rows([batch(data, 0, 1, 2 * n)])
    assert sorted(seen) == sorted(2 * rows([data.images("train")])[0])


@pytest.mark.parametrize("count", [2, 4])
def test_the_parts_of_all_processes_make_the_whole_batch(data, count):
    for step in (0, 7):
        whole = batch(data, 1, step, 16)
        parts = [batch(data, 1, step, 16, (index, count)) for index in range(count)]
        np.testing.assert_array_equal(np.concatenate([part.x for part in parts]), whole.x)
        np.testing.assert_array_equal(np.concatenate([part.label for part in parts]), whole.label)


def test_digits_may_lack_some_labels_which_stay_classes_of_the_network():
    nine = DATASETS["digits"](labels=(0, 1, 2, 3, 4, 5, 6, 7, 8))
    assert (nine.spec, nine.null) == (DIGITS.spec, DIGITS.null)
    for split in ("train", "test"):
        whole, found = DIGITS.images(split), nine.images(split)
        np.testing.assert_array_equal(found.x, whole.x[whole.label != 9])
        np.testing.assert_array_equal(found.label, whole.label[whole.label != 9])
    rows = next(nine.without_images().batches(0, 0, 4096))
    np.testing.assert_array_equal(np.unique(rows.cond["label"]), range(9))
    assert np.bincount(rows.cond["label"]).min() > 4096 / 9 * 0.8


def test_digits_without_labels_are_the_same_images_for_a_network_without_classes():
    plain = DATASETS["digits"](labelled=False)
    assert (plain.num_classes, plain.null, plain.num_labels) == (0, {}, 10)
    for split in ("train", "test"):
        np.testing.assert_array_equal(plain.images(split).x, DIGITS.images(split).x)
        np.testing.assert_array_equal(plain.images(split).label, DIGITS.images(split).label)


def test_digits_have_a_fixed_split_without_overlap():
    train, test = DIGITS.images("train"), DIGITS.images("test")
    assert len(train.label) == 1437
    assert len(test.label) == 360
    assert not {x.tobytes() for x in train.x} & {x.tobytes() for x in test.x}
    again = DATASETS["digits"]()
    np.testing.assert_array_equal(again.images("test").x, test.x)


def test_the_mixture_is_the_toy_with_equally_many_points_of_every_mode():
    data, toy = DATASETS["mixture"](), ring()
    train, test = data.images("train"), data.images("test")
    for x, label in (train, test):
        assert x.shape == (20_000, 1, 1, 2)
        gaps = np.linalg.norm(x.reshape(-1, 1, 2) - toy.means, axis=-1)
        nearest = gaps.argmin(axis=1)
        assert np.bincount(nearest).min() > 2400  # Of 2,500; the modes overlap a little.
        assert np.mean(toy.labels[nearest] == label) > 0.9
        shares = x.reshape(-1, 8, 2)  # The modes in turn.
        np.testing.assert_allclose(shares.mean(0), toy.means, atol=0.01)
        np.testing.assert_allclose(shares.std(0), toy.std, rtol=0.05)
    again = DATASETS["mixture"]()
    np.testing.assert_array_equal(again.images("test").x, test.x)


def test_noise_has_any_shape_with_and_without_classes():
    data = DATASETS["noise"](size=5, channels=4, num_classes=7, count=20)
    assert data.shape == (5, 5, 4)
    assert data.images("train").x.dtype == np.uint8
    assert set(data.images("train").label) == set(range(7))
    data = DATASETS["noise"](num_classes=0, num_labels=3, count=20)
    assert (data.num_classes, data.num_labels) == (0, 3)
    assert set(data.images("train").label) == {0, 1, 2}
    assert DATASETS["noise"](num_classes=0).num_labels == 1
    with pytest.raises(ValueError, match="num_classes is 4 and num_labels 3; expected the same"):
        DATASETS["noise"](num_classes=4, num_labels=3)


def test_a_batch_says_which_examples_it_has_and_what_stands_for_no_condition(data):
    steps = list(itertools.islice(data.batches(0, 5, 8), 2))
    np.testing.assert_array_equal(np.concatenate([step.index for step in steps]), range(40, 56))
    part = next(data.batches(0, 5, 8, (1, 2)))
    np.testing.assert_array_equal(part.index, range(44, 48))
    assert data.spec.x.shape == steps[0].x.shape[1:]
    assert data.null.keys() == steps[0].cond.keys() == dict(data.spec.cond).keys()
    for name, leaf in data.spec.cond:
        assert data.null[name].shape == (1, *leaf.shape)
        assert steps[0].cond[name].shape == (8, *leaf.shape)
        assert data.null[name] == leaf.classes


def test_without_images_the_conditions_are_drawn_alike_in_every_process(data):
    free = data.without_images()
    whole = next(free.batches(3, 7, 8))
    parts = [next(free.batches(3, 7, 8, (i, 2))) for i in range(2)]
    assert whole.x is None
    assert free.spec == data.spec
    np.testing.assert_array_equal(np.concatenate([part.index for part in parts]), whole.index)
    for name, value in whole.cond.items():
        np.testing.assert_array_equal(np.concatenate([part.cond[name] for part in parts]), value)
        assert value.min() >= 0
        assert value.max() < dict(data.spec.cond)[name].classes


def test_only_points_of_the_mixture_have_no_bounds(data):
    assert data.spec.bounded == (data.shape[:2] != (1, 1))


@pytest.mark.parametrize("label", [-1, 3, 10**6])
def test_labels_beyond_the_classes_are_refused_where_they_enter(label):
    x, labels = np.zeros((4, 2, 2, 1), np.float32), np.asarray([0, 1, 2, label], np.int32)
    good = Source(x, np.arange(4, dtype=np.int32) % 3)
    with pytest.raises(ValueError, match=f"split 'test' has the label {label}; expected 0 to 2"):
        Arrays(good, Source(x, labels), num_classes=3, num_labels=3)
    rows = iter([Rows(np.arange(4), x, {"label": labels})])
    with pytest.raises(ValueError, match=f"a batch of the data .* the label {label}; expected 0"):
        next(with_labels_in_range(rows, image_data((2, 2, 1), 3)))
    with pytest.raises(
        ValueError, match=r"labels of shape \(3,\) for images of shape \(4, 2, 2, 1"
    ):
        Arrays(Source(x, labels[:3]), good, num_classes=3, num_labels=3)


def test_every_dataset_has_a_summary_with_a_fingerprint_that_is_its_own(data):
    summary = summarise(data)
    counts = [len(data.images(split).label) for split in ("train", "test")]
    assert list(summary.counts.values()) == counts
    assert len(summary.classes) == data.num_labels
    assert len(summary.fingerprint) == 16
    assert summary.fingerprint == summarise(data).fingerprint
    assert not check(data).problems


def test_a_changed_image_or_label_changes_the_fingerprint_of_arrays():
    x, label = np.zeros((4, 2, 2, 1), np.uint8), np.arange(4, dtype=np.int32)
    prints = set()
    for i in range(3):
        prints.add(Arrays(Source(x, label), Source(x, label), 4, 4).summary.fingerprint)
        x, label = (x + 1, label) if i == 0 else (x, label[::-1].copy())
    assert len(prints) == 3
