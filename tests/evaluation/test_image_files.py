"""Sets of images are written whole or not at all, and read as uint8 images of one size."""

import io
import json
import zipfile

import numpy as np
import pytest
from etils import epath
from PIL import Image

from distill_jax.data import DATASETS
from distill_jax.evaluation.image_files import Unfinished, read

RGB = np.random.default_rng(0).integers(0, 256, (10, 6, 5, 3)).astype(np.uint8)
GREY, MADE = RGB[..., :1], {"stage": "s00", "w": 0.5, "seed": 3}


def unfinished(out, num=10, shape=(6, 5, 3), made=MADE):
    return Unfinished(epath.Path(out), num, shape, made)


def write(out, x, label=None, made=MADE):
    files = unfinished(out, len(x), x.shape[1:], made)
    for start in range(0, len(x), 4):
        files.add(start, x[start : start + 4])
    files.finish(label)
    return epath.Path(out)


def collected(path):
    return np.concatenate(list(read(epath.Path(path)).batches()))


@pytest.mark.parametrize("name", ["x.npz", "folder"])
@pytest.mark.parametrize("x", [RGB, GREY], ids=["rgb", "grey"])
def test_a_set_is_read_as_it_was_written_in_pieces(tmp_path, name, x):
    out = write(tmp_path / "new" / name, x, np.arange(10))
    np.testing.assert_array_equal(collected(out), np.broadcast_to(x, RGB.shape))
    assert read(out).made == {"stage": "s00", "w": "0.5", "seed": "3"}
    assert [path.name for path in out.parent.iterdir()] == [name]


def test_an_npz_is_one_of_adm_with_three_channels_and_labels(tmp_path):
    with np.load(write(tmp_path / "x.npz", GREY, np.arange(10) % 3)) as arrays:
        assert (arrays["arr_0"].dtype, arrays["arr_0"].shape) == (np.uint8, (10, 6, 5, 3))
        np.testing.assert_array_equal(arrays["arr_1"], np.arange(10) % 3)
    with np.load(write(tmp_path / "y.npz", GREY)) as arrays:
        assert "arr_1" not in arrays.files


def test_a_folder_with_prompts_is_a_dataset_with_captions(tmp_path):
    x = np.broadcast_to(np.arange(80, dtype=np.uint8)[:, None, None, None], (80, 8, 8, 3))
    files = unfinished(tmp_path / "drawn", len(x), (8, 8, 3))
    files.add(0, x)
    files.finish(None, [f'text {i}, "quoted"\nétoile' for i in range(80)])
    data = DATASETS["captioned_folder"](str(tmp_path / "drawn"), 8)
    for split in ("train", "test"):
        shown = data.images(split).x[:, 0, 0, 0]
        assert data.captions(split) == [f'text {i}, "quoted"\nétoile' for i in shown]


def test_a_folder_has_numbered_pngs_that_are_grey_for_grey_images(tmp_path):
    out = write(tmp_path / "grey", GREY)
    names = sorted(path.name for path in out.glob("*.png"))
    assert names == [f"{i:06d}.png" for i in range(10)]
    with Image.open(out / "000003.png") as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), GREY[3, ..., 0])


@pytest.mark.parametrize("name", ["x.npz", "folder"])
def test_a_stopped_command_leaves_no_set_and_another_goes_on_to_the_same_bytes(tmp_path, name):
    whole = write(tmp_path / "whole" / name, RGB, np.arange(10))
    files = unfinished(tmp_path / name)
    assert files.done == 0
    files.add(0, RGB[:4])
    files.add(4, RGB[4:8])
    last = tmp_path / f"{name}.partial" / ("pixels" if name == "x.npz" else "000007.png")
    last.write_bytes(last.read_bytes()[:-5])  # The command was killed while it wrote.
    assert not (tmp_path / name).exists()
    again = unfinished(tmp_path / name)
    assert again.done == 7
    again.add(4, RGB[4:8])
    again.add(8, RGB[8:])
    again.finish(np.arange(10))
    assert not (tmp_path / f"{name}.partial").exists()
    if name == "x.npz":
        assert (tmp_path / name).read_bytes() == whole.read_bytes()
    else:
        for path in whole.iterdir():
            assert (tmp_path / name / path.name).read_bytes() == path.read_bytes()


def test_the_remains_of_another_set_are_not_mixed_with_it(tmp_path):
    unfinished(tmp_path / "x.npz").add(0, RGB[:4])
    for change in ({"num": 11}, {"made": {**MADE, "seed": 4}}):
        with pytest.raises(ValueError, match=r"partial was begun with other flags .*seed 3"):
            unfinished(tmp_path / "x.npz", **change)
    (tmp_path / "y.partial").mkdir()
    (tmp_path / "y.partial" / "mine.txt").touch()
    with pytest.raises(ValueError, match="y.partial is in the way"):
        unfinished(tmp_path / "y")


@pytest.mark.parametrize(
    ("out", "shape", "message"),
    [
        ("full", (6, 5, 3), "full is a folder with content; remove it"),
        ("x.npz", (1, 1, 2), r"shape \(1, 1, 2\) are no pictures .*--out=x.npy"),
        ("x.npz", (6, 5, 4), "no pictures of 1 or 3 channels"),
        ("gs://bucket/x.npz", (6, 5, 3), "is in a bucket"),
    ],
)
def test_places_and_images_that_do_not_fit_are_refused(tmp_path, out, shape, message):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "000000.png").touch()
    with pytest.raises(ValueError, match=message):
        unfinished(out if "://" in out else tmp_path / out, shape=shape)


def test_pictures_in_folders_are_read_in_the_order_of_their_names(tmp_path):
    for name, x in (("b/0.png", RGB[0]), ("a/1.png", RGB[1]), (".hidden/2.png", RGB[2])):
        (tmp_path / name).parent.mkdir()
        Image.fromarray(x).save(tmp_path / name)
    np.testing.assert_array_equal(collected(tmp_path), RGB[[1, 0]])
    assert read(epath.Path(tmp_path)).remark == ""
    Image.fromarray(RGB[0]).save(tmp_path / "c.jpg")
    assert read(epath.Path(tmp_path)).remark.startswith("1 pictures are in lossy formats")


def array(x):
    file = io.BytesIO()
    np.save(file, x)
    return file.getvalue()


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((4, 8, 8, 3), np.nan, np.float32), "float32 of shape .* expected uint8 from 0 to"),
        (np.zeros((4, 8, 8, 3), np.int32), "int32 of shape .* expected uint8 from 0 to 255"),
        (np.zeros((4, 8, 8, 4), np.uint8), r"shape \(8, 8, 4\) per image; expected uint8"),
        (np.zeros((4, 8), np.uint8), r"shape \(8,\) per image; expected uint8"),
        (np.ones((4, 8, 8, 3), np.uint8), "no value above 1; expected uint8 .* being scaled"),
        (np.asarray([{}]), "cannot be read as images"),
        (np.zeros((), np.uint8), "cannot be read as images"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_other_images_are_refused(tmp_path, x, message, suffix):
    path = tmp_path / f"x{suffix}"
    np.save(path, x) if suffix == ".npy" else np.savez(path, x)
    with pytest.raises(ValueError, match=message):
        collected(path)


def test_damaged_files_are_refused(tmp_path):
    content = array(RGB)
    (tmp_path / "cut.npy").write_bytes(content[:-400])
    with zipfile.ZipFile(tmp_path / "forged.npz", "w") as archive:
        archive.writestr("arr_0.npy", content[:-400])
        archive.writestr("made.npy", array(np.asarray(json.dumps([1]))))
    np.savez(tmp_path / "other.npz", images=RGB)
    (tmp_path / "text.npz").write_text("text")
    for name, reason in (
        ("cut.npy", "it ends in image 5"),
        ("forged.npz", "it ends in image 5"),
        ("other.npz", "no item named 'arr_0.npy'"),
        ("text.npz", "not a zip file"),
    ):
        with pytest.raises(ValueError, match=f"{name} cannot be read as images .*{reason}"):
            collected(tmp_path / name)
    assert read(epath.Path(tmp_path / "forged.npz")).made == {}


def test_pictures_that_are_missing_damaged_or_of_unlike_sizes_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing does not exist"):
        read(epath.Path(tmp_path / "missing"))
    with pytest.raises(ValueError, match="has no pictures: .bmp"):
        read(epath.Path(tmp_path))
    Image.fromarray(RGB[0]).save(tmp_path / "0.png")
    Image.fromarray(RGB[0][1:]).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match="1.png is 5x5, and 0.png is 5x6; expected pictures of"):
        collected(tmp_path)
    (tmp_path / "1.png").write_bytes((tmp_path / "0.png").read_bytes()[:50])
    with pytest.raises(ValueError, match="1.png cannot be read as an image"):
        collected(tmp_path)
    (tmp_path / "x.gif.txt").touch()
    with pytest.raises(ValueError, match="neither a folder nor an .npz or .npy"):
        read(epath.Path(tmp_path / "x.gif.txt"))
