"""Tests of images on disk: which are read, when, by which process, and the error messages."""

import io
import itertools
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets
from PIL import Image

from distill_jax.data.decoding import decode
from distill_jax.data.folder import folder
from distill_jax.data.images import Decoded, Encoded, Images
from distill_jax.data.resizing import RESIZERS, adm, area, triangle
from distill_jax.data.tfds import Tfds
from tests.data.pictures import CIFAR10, Rooms, Sounds, picture, png, write_folder, write_tfds
from tests.toys import ROOT

needs_cifar10 = pytest.mark.skipif(
    not (CIFAR10 / "cifar10").is_dir(),
    reason=f"no CIFAR-10 in {CIFAR10}; DISTILL_JAX_TEST_DATA is the data_dir to look in",
)


class Shelf:
    """Encoded pictures in memory that record which were read."""

    def __init__(self, count, size=4):
        self.pictures = [picture(i, size, size) for i in range(count)]
        self.read = []

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        self.read.append(index)
        return Encoded(png(self.pictures[index]), index, f"picture {index}")


def images_of(shelf, cache_bytes=2**20, flip=True):
    train = Decoded(lambda: shelf, 4, cache_bytes)
    return Images(train, Decoded(lambda: Shelf(2), 4), num_labels=len(shelf), flip=flip)


def threads():
    return {thread for thread in threading.enumerate() if "grain" in thread.name}


@pytest.mark.parametrize("resizer", [area, triangle])
@pytest.mark.parametrize(
    ("height", "width", "top", "left"),
    [(12, 12, 0, 0), (12, 40, 0, 14), (41, 12, 14, 0), (40, 13, 14, 0), (13, 40, 0, 14)],
)
def test_images_are_cropped_to_the_square_that_was_released(resizer, height, width, top, left):
    x, n = picture(0, height, width), min(height, width)
    np.testing.assert_array_equal(resizer(x, n), x[top : top + n, left : left + n])


def weights(n, size, kernel, radius):
    """Returns the weights (size, n) of n pixels in each of `size`; n > size widens the kernel."""
    step = n / size
    centres, width = (np.arange(size) + 0.5) * step, max(step, 1.0)
    distance = (np.arange(n) + 0.5 - centres[:, None]) / width
    found = kernel(distance) * (np.abs(distance) < radius)
    return found / found.sum(axis=1, keepdims=True)


def cubic(d):
    """Returns Keys' kernel with a = -1/2."""
    d = np.abs(d)
    return np.where(d < 1, (1.5 * d - 2.5) * d * d + 1, ((-0.5 * d + 2.5) * d - 4) * d + 2)


@pytest.mark.parametrize(("n", "size"), [(24, 12), (23, 7), (8, 20), (30, 29)])
def test_a_triangle_resize_is_the_separable_filter_rounded_once(n, size):
    x = picture(4, n, n)
    w = weights(n, size, lambda d: 1 - np.abs(d), 1)
    expected = np.einsum("ih,jw,hwc->ijc", w, w, x.astype(float))
    # Half of a grey level is rounding; Pillow's float32 may round a tie to the other side.
    np.testing.assert_allclose(triangle(x, size), expected, atol=0.5 + 1e-4)


def in_bytes(x, height, width, kernel, radius):
    """Resizes columns, then rows, and rounds each to bytes."""
    rows, columns = (
        weights(n, m, kernel, radius) for n, m in zip(x.shape, (height, width), strict=False)
    )
    x = np.floor(np.einsum("jw,hwc->hjc", columns, x) + 0.5).clip(0, 255)
    return np.floor(np.einsum("ih,hjc->ijc", rows, x) + 0.5).clip(0, 255)


@pytest.mark.parametrize(("height", "width", "halvings"), [(44, 52, 2), (19, 11, 0), (30, 24, 1)])
def test_an_adm_resize_halves_by_boxes_then_is_bicubic_and_cut_out(height, width, halvings):
    x, size = picture(5, height, width), 10
    expected, h, w = x.astype(float), height, width
    for _ in range(halvings):
        h, w = h // 2, w // 2
        expected = in_bytes(expected, h, w, np.ones_like, 0.5)
    assert min(h, w) < 2 * size
    h, w = (round(side * size / min(h, w)) for side in (h, w))
    expected = in_bytes(expected, h, w, cubic, 2)
    top, left = (h - size) // 2, (w - size) // 2
    # Pillow's weights have 22 bits: a sum near a tie may be rounded to the other side.
    difference = np.abs(adm(x, size) - expected[top : top + size, left : left + size])
    assert difference.max() <= 1
    assert difference.mean() < 0.01


@pytest.mark.parametrize("height", [16, 17])
def test_an_adm_resize_of_an_image_of_the_size_cuts_only(height):
    x = picture(6, height, 16)
    np.testing.assert_array_equal(adm(x, 16), x[:16])


def test_a_folder_is_resized_as_it_says_and_an_unknown_way_is_refused(tmp_path):
    write_folder(tmp_path, count=20)
    made = {way: folder(str(tmp_path), 4, resize=way).images("test").x for way in RESIZERS}
    first = picture(0)
    for way, resizer in RESIZERS.items():
        assert any(np.array_equal(x, resizer(first, 4)) for x in made[way])
    assert len({x.tobytes() for x in made.values()}) == 3
    with pytest.raises(KeyError, match="unknown resize 'bicubic'; known: adm, area, triangle"):
        folder(str(tmp_path), 4, resize="bicubic")


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_an_area_resize_by_a_whole_factor_is_the_mean_of_blocks(factor):
    x = picture(1, 6 * factor, 6 * factor)
    blocks = x.reshape(6, factor, 6, factor, 3).mean(axis=(1, 3))
    # Half of a grey level is rounding; float32 sums may round a tie to the other side.
    np.testing.assert_allclose(area(x, 6), blocks, atol=0.5 + 1e-4)


@pytest.mark.parametrize(("n", "size"), [(7, 5), (9, 4), (5, 8)])
def test_an_area_resize_weighs_pixels_by_the_share_of_them_within(n, size):
    x = picture(2, n, n)
    # Every pixel as size x size equal ones: then whole blocks of n x n make the new pixels.
    fine = x.repeat(size, axis=0).repeat(size, axis=1)
    blocks = fine.reshape(size, n, size, n, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(area(x, size), blocks, atol=0.5 + 1e-4)


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    write_folder(tmp_path)
    write_folder(tmp_path, classes=(".thumbs",))
    (tmp_path / "cat" / ".000.png").write_bytes(png(picture(0)))
    data = folder(str(tmp_path), 4)
    assert data.num_labels == 3
    assert len(data.train) + len(data.test) == 30
    write_folder(tmp_path / ".all", classes=("cat",))
    data = folder(str(tmp_path / ".all"), 4)  # Hidden itself, but asked for.
    assert len(data.train) + len(data.test) == 30


def test_an_image_of_the_size_is_not_touched(tmp_path):
    write_folder(tmp_path, count=20)
    data = folder(str(tmp_path), 8)
    crops = {picture(i)[:, 1:9].tobytes() for i in range(20)}
    assert {x.tobytes() for x in data.images("train").x} < crops


def test_grey_transparent_and_indexed_images_have_three_channels():
    x = picture(3)
    for mode in ("L", "LA", "RGBA", "P", "1"):
        buffer = io.BytesIO()
        Image.fromarray(x).convert(mode).save(buffer, "PNG")
        seen = decode(buffer.getvalue(), "picture")
        assert seen.shape == x.shape
        assert seen.dtype == np.uint8
        if mode in ("L", "LA", "1"):
            assert (seen == seen[..., :1]).all()
        elif mode == "RGBA":
            np.testing.assert_array_equal(seen, x)


def test_half_of_the_training_images_are_mirrored_and_others_in_the_next_epoch():
    shelf = Shelf(64)
    epochs = list(itertools.islice(images_of(shelf).batches(0, 0, 64), 2))
    mirrored = []
    for _, x, cond in epochs:
        label = cond["label"]
        known = np.stack([shelf.pictures[i] for i in label])
        flips = (x == known[:, :, ::-1]).all(axis=(1, 2, 3))
        assert ((x == known).all(axis=(1, 2, 3)) ^ flips).all()
        mirrored.append(flips[np.argsort(label)])
    # Of 64 fair coins 12 to 52 come up heads but for one time in two million.
    assert all(12 < flips.sum() < 52 for flips in (*mirrored, mirrored[0] ^ mirrored[1]))


def test_without_flip_and_in_samples_no_image_is_mirrored():
    shelf = Shelf(16)
    batch = next(images_of(shelf, flip=False).batches(0, 0, 32))
    for x, label in ((batch.x, batch.cond["label"]), images_of(shelf).images("train")):
        np.testing.assert_array_equal(x, np.stack([shelf.pictures[i] for i in label]))


def test_small_data_are_decoded_once():
    shelf = Shelf(24)
    data = images_of(shelf)
    for _ in itertools.islice(data.batches(0, 0, 24), 3):
        pass
    data.images("train")
    # Threads that decode the same image at the same time each read it.
    assert set(shelf.read) == set(range(24))
    read = len(shelf.read)
    next(data.batches(1, 0, 48))
    data.images("train")
    assert len(shelf.read) == read


def test_larger_data_are_read_each_time_and_are_the_same():
    shelf, large = Shelf(24), Shelf(24)
    a = next(images_of(shelf).batches(5, 2, 24))
    data = images_of(large, cache_bytes=1000)
    b = next(data.batches(5, 2, 24))
    np.testing.assert_array_equal(a.x, b.x)
    assert len(data.images("train").label) == 24
    assert len(large.read) > 24


def test_a_process_reads_nothing_but_its_part_and_a_resumed_run_nothing_before():
    shelves = Shelf(4096), Shelf(4096)
    iterators = [
        images_of(shelf).batches(3, 10**6, 8, (index, 2)) for index, shelf in enumerate(shelves)
    ]
    labels = [set(np.concatenate([next(it).cond["label"] for _ in range(5)])) for it in iterators]
    for iterator in iterators:
        iterator.close()
    for shelf, mine, others in zip(shelves, labels, labels[::-1], strict=True):
        assert mine <= set(shelf.read)
        assert not others & set(shelf.read)
        assert len(shelf.read) < 400  # What is read ahead grows with the number of cores.


def test_an_iterator_that_is_dropped_stops_its_threads():
    before = threads()
    iterator = images_of(Shelf(16)).batches(0, 0, 4)
    next(iterator)
    started = threads() - before
    assert started
    del iterator
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_a_network_without_labels_leaves_them_to_the_evaluation(pictures, prepared):
    for data in (
        folder(str(pictures), 4, labelled=False),
        Tfds("pictures", 4, str(prepared), labelled=False),
    ):
        assert (data.num_classes, data.num_labels) == (0, 3)
        assert set(data.images("train").label) == {0, 1, 2}


def test_a_dataset_without_a_label_has_one_and_its_only_image_may_have_any_name(tmp_path):
    data = Tfds("rooms", 8, str(write_tfds(tmp_path, Rooms)), flip=False)
    assert (data.num_classes, data.num_labels) == (0, 1)
    x, label = data.images("test")
    assert list(label) == [0] * 6
    assert {image.tobytes() for image in x} == {
        picture(i)[:, 1:9].tobytes() for i in range(100, 106)
    }


def test_a_slice_of_a_split_can_be_held_out(prepared):
    data = Tfds("pictures", 8, str(prepared), splits=("train[:20]", "train[20:]"))
    assert len(data.images("train").label) == 20
    assert len(data.images("test").label) == 7


def as_tfrecord(root):
    """Returns a folder of the same files whose description says TFRecord."""
    folder = write_tfds(root) / "pictures" / "1.0.0"
    for path in folder.glob("*array_record*"):
        path.rename(folder / path.name.replace("array_record", "tfrecord"))
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    return root


BAD = {
    "dataset that is not prepared": (
        lambda root: Tfds("cifar10", 8, str(root)),
        r"dataset 'cifar10' is not prepared in /.*; set data_dir .* once: python -c .*"
        r"t.builder\('cifar10', data_dir='/.*', file_format='array_record'\)"
        r".download_and_prepare\(\).* \(this may need TensorFlow, training does not",
    ),
    "data_dir that is not there": (
        lambda root: Tfds("lsun/bedroom", 8, str(root / "nothing")),
        r"'lsun/bedroom' is not prepared in /.*/nothing; .*t.builder\('lsun/bedroom', ",
    ),
    "unknown dataset": (
        lambda root: Tfds("imagenet_resize/64x64", 8, str(root)),
        "unknown dataset 'imagenet_resize/64x64': .*; did you mean 'imagenet_resized'",
    ),
    "name that is none": (
        lambda root: Tfds("cifar10/", 8, str(root)),
        r"dataset 'cifar10/': Parsing builder name string",
    ),
    "dataset in the other format": (
        lambda root: Tfds("pictures", 8, str(as_tfrecord(root))).images("train", 1),
        r"'pictures' is prepared in /.* as tfrecord, which only TensorFlow reads; prepare it in "
        r"another folder: .*t.builder\('pictures', data_dir='FOLDER', file_format='array_record'",
    ),
    "split that is none": (
        lambda root: Tfds(
            "pictures", 8, str(write_tfds(root)), splits=("train", "validation")
        ).images("test", 1),
        r"'pictures' has no split 'validation'; it has train, test, and slices",
    ),
    "other labels than promised": (
        lambda root: Tfds("pictures", 8, str(write_tfds(root)), num_labels=7).images("train", 1),
        "num_labels is 7, but dataset 'pictures' has ",
    ),
    "dataset without images": (
        lambda root: Tfds("sounds", 8, str(write_tfds(root, Sounds))),
        "dataset 'sounds' has the features number; expected an image",
    ),
    "split with one image": (
        lambda root: Tfds("pictures", 8, str(write_tfds(root)), splits=("train", "test[:1]")),
        r"split 'test\[:1\]' of dataset 'pictures' has 1 images; the report needs at least 2",
    ),
    "held-out split with one image, with the number of labels": (
        lambda root: next(
            Tfds("pictures", 8, str(write_tfds(root)), ("train", "test[:1]"), num_labels=3).batches(
                0, 0, 4
            )
        ),
        r"split 'test\[:1\]' of dataset 'pictures' has 1 images",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_read_is_one_message(kind, tmp_path):
    make, message = BAD[kind]
    with pytest.raises(ValueError, match=message) as caught:
        make(tmp_path)
    assert len(caught.value.args) == 1


@pytest.mark.parametrize("kept", [0, 60])
def test_a_damaged_image_is_named_by_batches_and_samples(kept, tmp_path):
    write_folder(tmp_path)
    damaged = tmp_path / "cat" / "003.png"
    damaged.write_bytes(damaged.read_bytes()[:kept])
    data = folder(str(tmp_path), 4)
    problem = r"truncated|Truncated" if kept else "its format is none of BMP"
    message = rf"cat/003.png cannot be read as an image \(.*({problem}).*\); repair or remove it"
    for read in (lambda: data.images("train"), lambda: next(data.batches(0, 0, 54))):
        with pytest.raises(ValueError, match=message):
            read()


PROGRAM = """
import sys
from distill_jax.data import DATASETS
data = DATASETS["tfds"]("pictures", 8, sys.argv[1])
assert next(data.batches(0, 0, 16)).x.shape == (16, 8, 8, 3)
assert data.images("test", 5).x.shape == (5, 8, 8, 3)
"""


def test_tensorflow_is_not_imported_where_it_is_installed_and_nothing_is_printed(
    prepared, tmp_path
):
    (tmp_path / "tensorflow.py").write_text("raise AssertionError('TensorFlow was imported')")
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(prepared)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_with_its_number_of_labels_a_dataset_is_described_where_it_is_not(tmp_path):
    data = Tfds("imagenet2012", 64, str(tmp_path), num_labels=1000)
    assert (data.shape, data.num_classes, data.num_labels) == ((64, 64, 3), 1000, 1000)
    with pytest.raises(ValueError, match="'imagenet2012' is not prepared"):
        data.images("train", 1)


@needs_cifar10
def test_cifar10_is_read_as_tfds_reads_it():
    split = {"data_dir": str(CIFAR10), "splits": ("train", "test[:50]")}
    data = Tfds("cifar10", 32, flip=False, **split)
    assert (data.shape, data.num_classes, len(data.train)) == ((32, 32, 3), 10, 50_000)
    records = tensorflow_datasets.data_source("cifar10", split="test", data_dir=str(CIFAR10))
    for x, label, i in zip(*data.images("test"), range(50), strict=True):
        np.testing.assert_array_equal(x, records[i]["image"])
        assert label == records[i]["label"]
    assert next(data.batches(0, 0, 16)).x.shape == (16, 32, 32, 3)
    assert "tensorflow" not in sys.modules
