"""Tests of folders of pictures with captions."""

import json
import pathlib
import zipfile

import numpy as np
import PIL.Image
import pytest

from distill_jax.data import DATASETS, Dataset
from tests.toys import ROOT

EMOJI = pathlib.Path(ROOT).parent / "shared" / "data" / "emoji64"
NAMES = [f"{i:02d}.png" for i in range(40)]


def write(folder, table=None, texts=None):
    """Writes 40 pictures whose grey level is 6 times their number, and their captions."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(NAMES):
        grey = np.full((8, 8, 3), 6 * i, np.uint8)
        PIL.Image.fromarray(grey).save(folder / "images" / name)
    if table is not None:
        lines = [json.dumps(entry) for entry in table]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    for name, text in (texts or {}).items():
        (folder / "images" / name).write_text(text)
    return folder


def rows(text=lambda i: f"picture {i}", names=NAMES):
    return [{"file_name": f"images/{name}", "text": text(i)} for i, name in enumerate(names)]


def load(path, **options):
    return DATASETS["captioned_folder"](str(path), 8, **options)


def numbers(x):
    """Returns the numbers of pictures from their grey levels."""
    return np.asarray(x)[:, 0, 0, 0] // 6


def test_a_table_gives_every_picture_its_caption(tmp_path):
    data = load(write(tmp_path, rows()))
    assert isinstance(data, Dataset)
    for split in ("train", "test"):
        shown = numbers(data.images(split).x)
        assert data.captions(split) == [f"picture {i}" for i in shown]
        assert data.captions(split, 3) == [f"picture {i}" for i in numbers(data.images(split, 3).x)]
    assert sum(data.summary.counts.values()) == 40
    batch = next(data.batches(0, 2, 8))
    assert [f"picture {i}" for i in numbers(batch.x)] == batch.cond["caption"].tolist()
    assert data.null["caption"].tolist() == [""]


def test_parts_of_a_batch_are_those_of_the_whole(tmp_path):
    data = load(write(tmp_path, rows(lambda i: [f"{i} a", f"{i} b", f"{i} c"])))
    whole = next(data.batches(1, 3, 8))
    parts = [next(data.batches(1, 3, 8, (i, 2))) for i in (0, 1)]
    captions = np.concatenate([part.cond["caption"] for part in parts])
    assert captions.tolist() == whole.cond["caption"].tolist()


def test_several_captions_take_turns_at_random(tmp_path):
    data = load(write(tmp_path, rows(lambda i: [f"{i} a", f"{i} b"])))
    batches = data.batches(0, 0, 16)
    seen = [text for _ in range(10) for text in next(batches).cond["caption"]]
    assert 0.3 < np.mean([text.endswith("a") for text in seen]) < 0.7
    prompts = next(data.without_images().batches(0, 0, 64))
    assert prompts.x is None
    assert {text[-1] for text in prompts.cond["caption"]} == {"a", "b"}


def test_texts_beside_the_pictures_are_captions(tmp_path):
    texts = {f"{i:02d}.txt": f"picture {i}\n\nagain {i}\n" for i in range(40)}
    data = load(write(tmp_path, texts=texts))
    assert data.captions("test") == [f"picture {i}" for i in numbers(data.images("test").x)]
    assert data.summary.captions == {"all": 80, "different": 80}


def test_a_zip_is_read_like_its_folder(tmp_path):
    write(tmp_path / "a", rows())
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in sorted((tmp_path / "a").rglob("*.*")):
            archive.write(file, file.relative_to(tmp_path / "a"))
    one, two = load(tmp_path / "a"), load(tmp_path / "a.zip")
    assert one.captions("train") == two.captions("train")
    assert one.summary.fingerprint == two.summary.fingerprint


def test_pictures_of_one_caption_are_in_one_split(tmp_path):
    data = load(write(tmp_path, rows(lambda i: f"thing {i // 2}")))
    assert not set(data.captions("train")) & set(data.captions("test"))


def test_pictures_without_a_caption_are_passed_over_and_said(tmp_path):
    data = load(write(tmp_path, rows(lambda i: "" if i == 3 else f"picture {i}", NAMES[:38])))
    assert sum(data.summary.counts.values()) == 37
    assert data.summary.passed == ["3 without a caption (images/03.png)"]


def test_changed_captions_change_the_fingerprint(tmp_path):
    before = load(write(tmp_path, rows())).summary.fingerprint
    assert load(write(tmp_path, rows())).summary.fingerprint == before
    other = write(tmp_path, rows(lambda i: f"image {i}"))
    assert load(other).summary.fingerprint != before


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (rows(names=[*NAMES, "40.png"]), "names 1 pictures that are not there, such as 'images/40"),
        ([{"file_name": "images/00.png"}], "line 1, is no JSON object with 'file_name' and one of"),
        ([{"file_name": 3, "text": "a"}], "line 1, is no JSON object with 'file_name' and one of"),
        ([{"file_name": "images/00.png", "text": [1]}], "line 1, has no text or list of texts in"),
        ([[1, 2]], "line 1, is no JSON object"),
        (rows(lambda i: "same"), "in the (train|test) split; expected at least"),
        (rows(lambda i: " "), "has no captions; expected metadata.jsonl"),
        (None, "has no captions; expected metadata.jsonl"),
    ],
)
def test_bad_tables_are_one_message(tmp_path, table, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path, table))


def test_texts_of_other_bytes_are_refused(tmp_path):
    write(tmp_path)
    (tmp_path / "images" / "00.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        load(tmp_path)


@pytest.mark.skipif(not EMOJI.exists(), reason="the emoji are not here")
def test_both_designs_of_an_emoji_are_in_one_split():
    data = DATASETS["captioned_folder"](str(EMOJI), 64)
    assert data.summary.counts == {"train": 3450, "test": 372}
    assert not set(data.captions("train")) & set(data.captions("test"))


def coco(root, names=NAMES, **changes):
    """Writes COCO's annotations, two captions of every picture, beside the folder train2017."""
    images = [{"id": 7 * i, "file_name": name} for i, name in enumerate(names)]
    notes = [
        {"image_id": 7 * i, "id": i, "caption": f"{text} {i}\n"}
        for text in ("picture", "again")
        for i in range(len(names))
    ]
    content = {"info": {}, "images": images, "annotations": notes, **changes}
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps(content))
    return root


def test_annotations_of_coco_have_the_captions(tmp_path):
    (write(tmp_path) / "images").rename(tmp_path / "train2017")
    data = load(coco(tmp_path))
    assert data.captions("train") == [f"picture {i}" for i in numbers(data.images("train").x)]
    assert data.summary.captions == {"all": 80, "different": 80}
    assert data.summary.passed == []
    (tmp_path / "annotations" / "captions_val2017.json").write_text(
        json.dumps({"images": [], "annotations": []})
    )
    note = "1 without the pictures of a folder val2017 (annotations/captions_val2017.json)"
    assert load(tmp_path).summary.passed == [note]
    images = DATASETS["folder"](str(tmp_path), 8)
    assert "2 files with captions (annotations/captions_train2017.json)" in images.summary.passed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": [*NAMES, "x.png"]}, "names 1 pictures that are not there, such as 'train2017/x"),
        ({"images": None}, "captions_train2017.json is no COCO annotations; expected 'images'"),
        ({"images": [{"id": 1}]}, "is no COCO annotations; expected 'images'"),
        ({"annotations": [{"image_id": "1", "caption": "a"}]}, "is no COCO annotations"),
        ({"annotations": [{"image_id": 5, "caption": "a"}]}, "has a caption of image 5, which is"),
    ],
)
def test_bad_annotations_of_coco_are_one_message(tmp_path, changes, message):
    (write(tmp_path) / "images").rename(tmp_path / "train2017")
    with pytest.raises(ValueError, match=message):
        load(coco(tmp_path, **changes))


def test_texts_may_have_any_line_ends_and_a_byte_order_mark(tmp_path):
    texts = {f"{i:02d}.txt": f"\ufeffpicture {i}\r\nagain\u2028{i}\r" for i in range(40)}
    data = load(write(tmp_path, texts=texts))
    assert data.captions("train") == [f"picture {i}" for i in numbers(data.images("train").x)]
    assert data.summary.captions == {"all": 80, "different": 80}


def test_pictures_that_cannot_be_read_may_be_passed_over_though_a_table_names_them(tmp_path):
    write(tmp_path, rows())
    (tmp_path / "images" / "03.png").write_bytes(b"no picture")
    data = load(tmp_path, skip_unreadable=True)
    assert sum(data.summary.counts.values()) == 39
    assert data.summary.passed == ["1 unreadable pictures (images/03.png)"]
