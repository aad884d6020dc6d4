import numpy as np
import pytest

from distill_jax.data import DATASETS

DIGITS = DATASETS["digits"]()


@pytest.mark.parametrize("name", DATASETS)
def test_images_lie_in_range_and_labels_below_the_number_of_classes(name):
    data = DATASETS[name]()
    for part in (data.train, data.held_out):
        assert part.x.dtype == np.float32
        assert part.label.dtype == np.int32
        assert part.x.shape == (len(part.label), *data.shape)
        assert -1 <= part.x.min() < part.x.max() <= 1
        assert set(part.label) == set(range(data.num_classes))


def test_digits_have_a_fixed_split_without_overlap():
    assert len(DIGITS.train.label) == 1437
    assert len(DIGITS.held_out.label) == 360
    train = {x.tobytes() for x in DIGITS.train.x}
    assert not train & {x.tobytes() for x in DIGITS.held_out.x}
    again = DATASETS["digits"]()
    np.testing.assert_array_equal(again.held_out.x, DIGITS.held_out.x)


def test_a_batch_is_a_function_of_seed_and_step():
    a, b = (DIGITS.batch(3, 17, 64) for _ in range(2))
    np.testing.assert_array_equal(a.x, b.x)
    assert not np.array_equal(a.x, DIGITS.batch(3, 18, 64).x)
    assert not np.array_equal(a.x, DIGITS.batch(4, 17, 64).x)


def test_every_image_is_seen_once_in_each_epoch_with_its_label():
    data = DATASETS["noise"](size=2, count=30)
    batches = [data.batch(0, step, 12) for step in range(5)]
    x = np.concatenate([batch.x for batch in batches])
    label = np.concatenate([batch.label for batch in batches])
    for epoch in (slice(0, 30), slice(30, 60)):
        seen = sorted(image.tobytes() for image in x[epoch])
        assert seen == sorted(image.tobytes() for image in data.train.x)
    known = {image.tobytes(): number for image, number in zip(*data.train, strict=True)}
    assert [known[image.tobytes()] for image in x] == list(label)
    assert not np.array_equal(x[:30], x[30:])


def test_a_batch_larger_than_the_data_is_made_of_several_epochs():
    data = DATASETS["noise"](size=2, count=5)
    assert DIGITS.batch(0, 0, 2000).x.shape[0] == 2000
    assert data.batch(0, 1, 12).x.shape[0] == 12


@pytest.mark.parametrize("count", [2, 4])
def test_the_parts_of_all_processes_make_the_whole_batch(count):
    whole = DIGITS.batch(1, 7, 64).x
    parts = [DIGITS.batch(1, 7, 64, (index, count)).x for index in range(count)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
