"""Folders of images: layouts, splits by name, and what is passed over."""

import io
import json
import os
import sys
import zipfile

import numpy as np
import pytest

from distill_jax.data.base import check
from distill_jax.data.folder import folder
from distill_jax.data.layouts import TEST_SHARE
from distill_jax.data.listing import MAX_DEPTH
from tests.data.pictures import picture, png, write_folder


def write(root, names, start=0):
    """Writes a different picture under every name."""
    for i, name in enumerate(names, start):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(i)))
    return root


def numbered(start, count=12, suffix="png"):
    return [f"{start}{i:03d}.{suffix}" for i in range(count)]


def found(data):
    """Returns names and labels of both splits."""
    opened = [split._read() for split in (data.train, data.test)]
    return [dict(each._files) for each in opened]


def everything(data):
    train, test = found(data)
    assert not train.keys() & test.keys()
    return train | test


def zipped(root, around=""):
    path = root.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, around + str(file.relative_to(root)))
    return path


def edm(root):
    """Writes EDM's layout, whose folders are shards."""
    names = [f"{i // 10:05d}/img{i:08d}.png" for i in range(40)]
    labels = [[name, i % 2] for i, name in enumerate(names)]
    write(root, names)
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    return dict(labels)


def class_folders(root):
    write(root, [*numbered("cat/"), *numbered("dog/")])
    return {name: int(name.startswith("dog")) for name in (*numbered("cat/"), *numbered("dog/"))}


def flat(root):
    write(root, numbered(""))
    (root / ".hidden.png").write_text("ignored")
    return dict.fromkeys(numbered(""), 0)


def by_number(root):
    names = [f"{c}/{i}.png" for c in (0, 1, 2, 10, 11) for i in range(4)]
    write(root, names)
    return {name: [0, 1, 2, 10, 11].index(int(name.split("/")[0])) for name in names}


def captions(root):
    names = numbered("images/")
    write(root, names)
    lines = [json.dumps({"file_name": name, "text": "a cat"}) for name in names]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    return dict.fromkeys(names, 0)


LAYOUTS = {
    "edm": (edm, ("0", "1"), "labels of dataset.json"),
    "class folders": (class_folders, ("cat", "dog"), "split by name"),
    "flat": (flat, ("",), "split by name"),
    "by number": (by_number, ("0", "1", "2", "10", "11"), "split by name"),
    "captions": (captions, ("",), "metadata.jsonl with 12 captions, which are not used"),
}


@pytest.mark.parametrize("packed", ["", "zip", "zip with a folder around"])
@pytest.mark.parametrize("kind", LAYOUTS)
def test_layouts_have_their_classes_in_folders_and_zips_alike(kind, packed, tmp_path):
    make, classes, note = LAYOUTS[kind]
    root = tmp_path / "data"
    expected = make(root)
    path = zipped(root, "data/" if "around" in packed else "") if packed else root
    data = folder(str(path), 8, flip=False)
    assert everything(data) == expected
    assert data.summary.classes == classes
    assert data.num_labels == len(classes)
    assert note in data.summary.notes
    assert "upright by EXIF" in data.summary.notes
    assert not data.summary.passed
    assert check(data) == (len(expected), [])
    assert data.summary.fingerprint == folder(str(root), 8).summary.fingerprint
    seen = {x.tobytes() for x in np.concatenate([data.images(s).x for s in ("train", "test")])}
    assert seen == {picture(i)[:, 1:9].tobytes() for i in range(len(expected))}


@pytest.mark.parametrize("names", [("train", "val"), ("train", "test"), ("training", "validation")])
@pytest.mark.parametrize("within", [("cat/", "dog/"), ("",)])
def test_folders_of_splits_are_the_splits(names, within, tmp_path):
    for split, count in zip(names, (9, 5), strict=True):
        write(tmp_path, [name for c in within for name in numbered(f"{split}/{c}", count)])
    data = folder(str(tmp_path), 4)
    train, test = found(data)
    assert all(name.startswith(f"{names[0]}/") for name in train)
    assert all(name.startswith(f"{names[1]}/") for name in test)
    assert data.summary.counts == {"train": 9 * len(within), "test": 5 * len(within)}
    assert data.num_labels == len(within)
    assert data.summary.notes[0] == f"{names[0]}/ and {names[1]}/"


def test_prefixes_are_classes_on_request(tmp_path):
    write(tmp_path, [*numbered("a/cat_"), *numbered("dog_")])
    data = folder(str(tmp_path), 4, classes="prefixes")
    assert data.summary.classes == ("cat", "dog")
    assert everything(data) == {
        **dict.fromkeys(numbered("a/cat_"), 0),
        **dict.fromkeys(numbered("dog_"), 1),
    }
    write(tmp_path, ["emu.png"])
    with pytest.raises(ValueError, match=r"emu.png has no class before a '_' in its name"):
        folder(str(tmp_path), 4, classes="prefixes")


def test_a_file_more_or_less_moves_no_other(tmp_path):
    root = write(tmp_path, [name for c in "abc" for name in numbered(f"{c}/", 60)])
    train, test = found(folder(str(root), 4))
    assert 0.5 * TEST_SHARE < len(test) / 180 < 2 * TEST_SHARE
    for gone in (*list(train)[::20], *list(test)[::3]):
        data = (root / gone).read_bytes()
        (root / gone).unlink()
        fewer = found(folder(str(root), 4))
        assert fewer[0].keys() == train.keys() - {gone}
        assert fewer[1].keys() == test.keys() - {gone}
        (root / gone).write_bytes(data)
    write(root, numbered("aa/more", 30))
    more = found(folder(str(root), 4))
    assert all(more[i].keys() >= old.keys() for i, old in enumerate((train, test)))


def test_small_classes_keep_a_training_image(tmp_path):
    root = write(tmp_path, [f"c{c:02d}/{i}.png" for c in range(40) for i in range(2)])
    data = folder(str(root), 4)
    assert set(found(data)[0].values()) == set(range(40))
    assert len(data.images("test").label) >= 2


def test_classes_of_one_image_each_are_refused(tmp_path):
    write(tmp_path, [f"c{c:02d}/0.png" for c in range(30)])
    message = "30 images in 30 classes; training needs one of each class, and the report 2 others"
    with pytest.raises(ValueError, match=message):
        folder(str(tmp_path), 4)


def test_a_class_without_images_keeps_its_number_and_is_named(tmp_path):
    write(tmp_path, [*numbered("a/"), *numbered("c/")])
    (tmp_path / "b").mkdir()
    data = folder(str(tmp_path), 4)
    assert data.summary.classes == ("a", "b", "c")
    assert set(everything(data).values()) == {0, 2}
    assert "without training images: b" in data.summary.notes


def test_what_is_passed_over_is_counted_with_a_name(tmp_path):
    root = write(tmp_path / "data", [*numbered("a/"), *numbered("b/sub/", 7)])
    write(root, [f"{'x/' * (MAX_DEPTH + 1)}0.png", "a/twelve.tif", "a/thirteen.tif"])
    (root / "list").write_text("no picture")
    (root / "a" / "old.png").mkdir()
    (root / "a" / "gone.png").symlink_to(root / "nowhere")
    (root / "a" / "around").symlink_to(root)
    os.mkfifo(root / "a" / "pipe.png")
    data = folder(str(root), 4)
    assert everything(data).keys() == set(numbered("a/"))
    assert data.summary.passed == [
        "7 deeper than the class folders (b/sub/000.png)",
        "2 .tif files (a/thirteen.tif)",
        "1 links to a folder above (a/around/)",
        "1 dangling links (a/gone.png)",
        "1 folders named like pictures (a/old.png)",
        "1 pipes or devices (a/pipe.png)",
        "1 files without a suffix (list)",
        f"1 below {MAX_DEPTH} folders ({'x/' * (MAX_DEPTH + 1)})",
    ]


def test_links_to_pictures_and_folders_are_followed(tmp_path):
    write(tmp_path / "there", numbered(""))
    (tmp_path / "data").mkdir()
    for name in "ab":
        (tmp_path / "data" / name).symlink_to(tmp_path / "there")
    assert len(everything(folder(str(tmp_path / "data"), 4))) == 24


def test_unreadable_pictures_are_found_at_once_and_passed_over_on_request(tmp_path):
    write(tmp_path, numbered("", 40))
    for name in ("003.png", "017.png"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:200])
    (tmp_path / "030.png").write_bytes(b"")
    opened, problems = check(folder(str(tmp_path), 4))
    assert opened == 40
    assert sorted(text.partition(" cannot be read")[0][-7:] for text in problems) == [
        "003.png",
        "017.png",
        "030.png",
    ]
    shares = [check(folder(str(tmp_path), 4), (i, 3)) for i in range(3)]
    assert sum(share.opened for share in shares) == 40
    assert sorted(text for share in shares for text in share.problems) == sorted(problems)
    data = folder(str(tmp_path), 4, skip_unreadable=True)
    assert "3 unreadable pictures (003.png)" in data.summary.passed
    assert check(data) == (37, [])
    assert len(data.images("train").label) + len(data.images("test").label) == 37


def test_large_pictures_are_checked_at_their_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[folder.__module__], "DECODED_BYTES", 100)
    test_unreadable_pictures_are_found_at_once_and_passed_over_on_request(tmp_path)


def test_the_check_stops_in_time(tmp_path, monkeypatch):
    monkeypatch.setattr("distill_jax.data.images.CHECK_SECONDS", -1.0)
    assert check(folder(str(write(tmp_path, numbered(""))), 4)) == (0, [])


def test_the_fingerprint_is_of_names_sizes_and_labels(tmp_path):
    write_folder(tmp_path)
    first = folder(str(tmp_path), 4).summary.fingerprint
    assert first == folder(str(tmp_path), 8, flip=False).summary.fingerprint
    (tmp_path / "cat").rename(tmp_path / "zebra")
    assert folder(str(tmp_path), 4).summary.fingerprint != first
    (tmp_path / "zebra").rename(tmp_path / "cat")
    (tmp_path / "cat" / "000.png").write_bytes(png(picture(0)) + b"0")
    assert folder(str(tmp_path), 4).summary.fingerprint != first


def table(content, name="dataset.json"):
    def make(root):
        write(root, numbered(""))
        (root / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return root

    return make


def archive(*entries):
    def make(root):
        path = root / "x.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in entries:
                file.writestr(name, content)
        return path

    return make


def beside(root):
    return write(write_folder(root), ["other.png"])


BAD = {
    "not there": (lambda root: root / "nothing", "/nothing is no folder; expected one with"),
    "empty": (lambda root: root, "has 0 images; expected at least 6"),
    "too few": (lambda root: write(root, numbered("", 5)), "has 5 images; expected at least 6"),
    "too few to test": (
        lambda root: write(root, [*numbered("train/"), "val/0.png"]),
        "/val has 1 images; expected at least 2",
    ),
    "other suffixes": (
        lambda root: write(root, numbered("", suffix="tif")),
        r"has 0 images; .*; passed over: 12 .tif files \(000.tif\)",
    ),
    "images beside the classes": (
        beside,
        "has images in cat/ and others, such as other.png, besid",
    ),
    "one folder too high": (
        lambda root: write(root, numbered("train/a/")),
        r"has 12 images, all deeper than its class folders, .*: give path=.*/train or such",
    ),
    "no JSON": (table("{"), "dataset.json is no JSON"),
    "nested JSON": (table("[" * 10**5), "dataset.json is no JSON"),
    "no labels": (table({"labels": [["000.png", "cat"]]}), "has no list of names and labels"),
    "negative labels": (table({"labels": [["000.png", -1]]}), "has no list of names and labels"),
    "huge labels": (table({"labels": [["000.png", 10**12]]}), "labels from 0 to 99999"),
    "no table": (table([]), "has no list of names and labels"),
    "captions without names": (table({"text": 3}, "metadata.jsonl"), "lines without a 'file_name'"),
    "no zip": (table("PK", "x.zip"), "x.zip is no folder and cannot be read as a zip"),
}
BAD["no zip"] = (lambda root: table("PK", "x.zip")(root) / "x.zip", BAD["no zip"][1])


@pytest.mark.parametrize("kind", BAD)
def test_other_folders_are_one_message(kind, tmp_path):
    make, message = BAD[kind]
    with pytest.raises(ValueError, match=message) as caught:
        folder(str(make(tmp_path)), 4)
    assert "\n" not in str(caught.value)


def test_entries_of_a_zip_stay_in_it_and_in_bounds(tmp_path):
    bitmap = b"BM" + bytes(2**22)
    good = [(name, png(picture(i))) for i, name in enumerate(numbered("a/"))]
    bad = [("../b/out.png", b"x"), ("/c/out.png", b"x"), ("a/bomb.bmp", bitmap), ("a//x.png", b"x")]
    path = archive(*good, *bad)(tmp_path)
    data = folder(str(path), 4)
    assert everything(data).keys() == set(numbered("a/"))
    assert data.summary.passed == [
        "3 with names outside the zip (../b/out.png)",
        "1 compressed more than 100 times (a/bomb.bmp)",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zip"]


def test_a_damaged_entry_of_a_zip_is_one_message(tmp_path):
    path = archive(*[(name, png(picture(i))) for i, name in enumerate(numbered(""))])(tmp_path)
    with zipfile.ZipFile(path) as file:
        offset = file.getinfo("004.png").header_offset + 60
    content = bytearray(path.read_bytes())
    content[offset : offset + 40] = bytes(40)
    path.write_bytes(content)
    problems = check(folder(str(path), 4)).problems
    assert len(problems) == 1
    assert "004.png" in problems[0]


def test_a_zip_is_read_by_threads_at_once(tmp_path):
    buffer = io.BytesIO(png(picture(0)))
    path = archive(*[(name, buffer.getvalue()) for name in numbered("", 100)])(tmp_path)
    data = folder(str(path), 8, flip=False)
    assert (next(data.batches(0, 0, 400)).x == picture(0)[:, 1:9]).all()
