"""Tests of WebDataset's tars of pictures with captions."""

import collections
import io
import json
import random
import tarfile

import numpy as np
import pytest

from distill_jax.data import DATASETS, Dataset, shards
from distill_jax.data.tars import MAX_HEADER, members
from tests.data.pictures import png

KEYS = [f"{i:09d}" for i in range(40)]


def grey(i):
    """Returns a PNG whose grey level is 6 times the number of the picture."""
    return png(np.full((8, 8, 3), 6 * i, np.uint8))


def write(path, entries, form=tarfile.PAX_FORMAT):
    """Writes a tar of names with bytes, or of TarInfos; times are fractions, as WebDataset's."""
    with tarfile.open(path, "w", format=form) as file:
        for name, content in entries:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1.5 if form == tarfile.PAX_FORMAT else 1
            file.addfile(info, io.BytesIO(content))
    return path


def example(i, text=None):
    """Returns the files of one example as img2dataset writes them."""
    text = f"picture {i}" if text is None else text
    told = {"caption": text, "url": "http://x/y.jpg", "key": KEYS[i], "status": "success"}
    parts = {"png": grey(i), "txt": text.encode(), "json": json.dumps(told).encode()}
    return [(f"{KEYS[i]}.{suffix}", content) for suffix, content in parts.items()]


def sharded(folder, form=tarfile.PAX_FORMAT):
    """Writes four shards of ten examples."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(4):
        entries = [file for i in range(10 * number, 10 * number + 10) for file in example(i)]
        write(folder / f"{number:05d}.tar", entries, form)
    return folder


def load(path, **options):
    return DATASETS["captioned_folder"](str(path), 8, **options)


def check(data):
    """Checks that pictures and captions belong together, and returns their numbers."""
    found = []
    for split in ("train", "test"):
        shown = data.images(split).x[:, 0, 0, 0] // 6
        assert data.captions(split) == [f"picture {i}" for i in shown]
        found += shown.tolist()
    return sorted(found)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("pattern", ["", "{00000..00003}.tar"])
def test_shards_are_read_from_a_folder_or_a_pattern(tmp_path, form, pattern):
    folder = sharded(tmp_path, form)
    (folder / "00000_stats.json").write_text("{}")
    data = load(folder / pattern)
    assert isinstance(data, Dataset)
    assert check(data) == list(range(40))
    assert data.summary.captions == {"all": 40, "different": 40}
    assert data.check().problems == []
    assert data.check().opened == 40
    batch = next(data.batches(0, 3, 8))
    assert batch.cond["caption"].tolist() == [f"picture {i}" for i in batch.x[:, 0, 0, 0] // 6]


def test_batches_are_a_function_of_seed_and_step(tmp_path):
    folder = sharded(tmp_path)
    whole = [next(iter([b])) for b, _ in zip(load(folder).batches(1, 0, 8), range(4), strict=False)]
    later = next(load(folder).batches(1, 3, 8))
    np.testing.assert_array_equal(whole[3].x, later.x)
    halves = [next(load(folder).batches(1, 3, 8, (i, 2))).cond["caption"] for i in (0, 1)]
    assert np.concatenate(halves).tolist() == later.cond["caption"].tolist()


def test_a_part_of_the_shards_or_one_may_be_named(tmp_path):
    folder = sharded(tmp_path)
    assert check(load(folder / "{00001..00003}.tar")) == list(range(10, 40))
    one = write(tmp_path / "x.tar", [file for i in range(40) for file in example(i)])
    assert check(load(one)) == list(range(40))


def test_the_split_is_that_of_the_same_captions_in_a_folder(tmp_path):
    data = load(sharded(tmp_path / "tars"))
    (tmp_path / "folder").mkdir()
    for name, content in (file for i in range(40) for file in example(i)):
        (tmp_path / "folder" / name).write_bytes(content)
    assert data.captions("test") == load(tmp_path / "folder").captions("test")


def test_captions_of_json_count_where_there_is_no_text(tmp_path):
    def told(i, caption):
        return [(f"{i}.png", grey(i)), (f"{i}.json", json.dumps({"caption": caption}).encode())]

    entries = [file for i in range(40) for file in told(i, [f"picture {i}", "", "again"])]
    data = load(write(tmp_path / "a.tar", [*entries, *told(41, None), ("41.txt", b"\n")]))
    assert check(data) == list(range(40))
    assert data.summary.captions == {"all": 80, "different": 41}
    assert data.summary.passed == ["1 without a caption (a.tar/41.png)"]
    prompts = next(data.without_images().batches(0, 0, 64)).cond["caption"]
    assert "again" in prompts


def test_what_is_no_picture_with_a_caption_is_passed_over_and_counted(tmp_path):
    def special(name, kind, link=""):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        return info, b""

    outside = [("/etc/a.png", b""), ("../b.png", b""), ("c/../../d.png", b"")]
    kinds = [
        special("l.png", tarfile.SYMTYPE, "/etc/passwd"),
        special("h.png", tarfile.LNKTYPE, "../../x.png"),
        special("p.png", tarfile.FIFOTYPE),
        special("v.png", tarfile.CHRTYPE),
        special("f.png", tarfile.DIRTYPE),
    ]
    more = [
        ("no.png", grey(1)),  # No caption.
        ("only.txt", b"no picture"),
        (f"{KEYS[0]}.jpg", grey(2)),  # A second picture of a key.
        (f"{KEYS[0]}.seg.png", grey(3)),
        (f"{KEYS[0]}.png", grey(4)),  # The same name again.
        (f"{KEYS[0]}.cls", b"3"),
        ("._x.png", b""),
        (".hidden/x.png", b""),
    ]
    first = [file for i in range(40) for file in example(i)]
    data = load(write(tmp_path / "a.tar", [*first, *outside, *kinds, *more]))
    assert check(data) == list(range(40))
    assert sorted(data.summary.passed) == [
        f"1 .cls files (a.tar/{KEYS[0]}.cls)",
        f"1 .seg.png files (a.tar/{KEYS[0]}.seg.png)",
        f"1 named twice in a tar (a.tar/{KEYS[0]}.png)",
        f"1 second pictures of a key (a.tar/{KEYS[0]}.jpg)",
        "1 texts without a picture (a.tar/only.txt)",
        "1 without a caption (a.tar/no.png)",
        "2 links in a tar (a.tar/l.png)",
        "2 pipes or devices in a tar (a.tar/p.png)",
        "3 with names outside the tar (a.tar//etc/a.png)",
    ]


def test_long_names_and_sizes_are_read_as_tarfile_reads_them(tmp_path):
    names = ["a" * 120 + ".png", "b/" * 80 + "c.txt", "ü" * 90 + ".json", "d.png"]
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write(tmp_path / "x.tar", [(name, name.encode() * 7) for name in names], form)
        with tarfile.open(path) as file:
            known = [(info.name, info.offset_data, info.size) for info in file]
        assert [(m.name, m.start, m.size) for m in members(path)] == known
        assert [m.name for m in members(path)] == names


def test_sparse_files_are_passed_over_and_what_follows_them_is_read(tmp_path):
    # A header of GNU with one more block of places, made by hand, as `tar --sparse` writes it.
    info = tarfile.TarInfo("s.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[482] = 1
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    more = bytes(512)
    rest = write(tmp_path / "rest.tar", [("t.png", b"pixels")]).read_bytes()
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(block) + more + b"x" * 512 + rest)
    found = list(members(path))
    assert [(m.name, m.reason) for m in found] == [
        ("s.png", "sparse files in a tar"),
        ("t.png", ""),
    ]
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    info = tarfile.TarInfo("u.png")
    info.pax_headers = headers
    assert next(members(write(path, [(info, b"")]))).reason == "sparse files in a tar"


def damaged(kind, folder):
    """Returns a folder of four shards of which the third is damaged."""
    path = sharded(folder) / "00002.tar"
    content = bytearray(path.read_bytes())
    if kind == "cut":
        content = content[:9000]
    elif kind == "cut in a header":
        content = content[: 512 * 3 + 512 + 100]
    elif kind == "checksum":
        content[0] ^= 1
    elif kind == "zip":
        content = b"\x1f\x8b" + content
    elif kind == "size":
        info = tarfile.TarInfo("x.png")
        info.size = 2**62
        content = info.tobuf(tarfile.GNU_FORMAT)
    elif kind == "header":
        info = tarfile.TarInfo("x")
        info.type, info.size = b"x", MAX_HEADER + 1
        content = info.tobuf() + bytes(2 * MAX_HEADER)
    elif kind == "records":
        info = tarfile.TarInfo("x")
        info.type, info.size = b"x", 20
        content = info.tobuf() + b"99 path=a\n".ljust(512, b"\0") + bytes(512)
    else:
        content = b""
    path.write_bytes(content)
    return folder


DAMAGE = {
    "cut": r"00002.tar is cut: a member ends at byte [\d,]+, and the file at 9,000",
    "cut in a header": r"00002.tar is damaged at byte 2,048: there is no header of a member",
    "checksum": r"00002.tar is no tar: there is no header of a member",
    "zip": r"00002.tar is compressed by gzip, .*unpack it to a plain .tar",
    "size": r"00002.tar is cut: a member ends at byte 4,611,686,018,427,388,416, and the file",
    "header": r"00002.tar has a header of 1,048,577 bytes at byte 512; expected at most 1,048,576",
    "records": r"00002.tar is damaged at byte 512: a header has no pax records",
    "empty": r"00002.tar is no tar: there is no header",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_shard_is_one_message_or_passed_over(tmp_path, kind):
    folder = damaged(kind, tmp_path)
    with pytest.raises(ValueError, match=f"{DAMAGE[kind]}.*; repair or remove it, or pass"):
        load(folder)
    data = load(folder, skip_unreadable=True)
    assert set(check(data)) >= {*range(20), *range(30, 40)}
    note = "1 damaged tars, from where they are damaged (00002.tar)"
    assert note in data.summary.passed


def test_mutated_tars_are_members_within_the_file_or_one_message(tmp_path):
    whole, rng = (
        write(tmp_path / "x.tar", [("a" * 120, b"x" * 700)] * 3).read_bytes(),
        random.Random(0),
    )
    found = collections.Counter()
    for _ in range(500):
        content = bytearray(whole)
        block = 512 * rng.randrange(len(whole) // 512)
        content[block + rng.choice((rng.randrange(512), 124, 156))] = rng.choice((0, 49, 120, 255))
        header = content[block : block + 512]
        header[148:156] = b" " * 8
        content[block + 148 : block + 156] = f"{sum(header):06o}\0 ".encode()  # A right checksum.
        (tmp_path / "y.tar").write_bytes(content)
        try:
            for member in members(tmp_path / "y.tar"):
                assert member.start + member.size <= len(content)
            found["members"] += 1
        except ValueError as error:
            assert str(error).startswith(f"{tmp_path}/y.tar is ")
            found["message"] += 1
    assert min(found["members"], found["message"]) > 50


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{00000..00005}.tar", "names 6 shards, of which 2 are missing, such as 00004.tar; add"),
        ("{3..0}.tar", "is a pattern of -2 shards; expected 1 to 100,000"),
        ("{0..999999999}.tar", "is a pattern of 1,000,000,000 shards; expected 1 to"),
        ("{a..b}.tar", "is no folder; expected one with pictures, or a zip"),
        ("none.tar", "is no folder; expected one with pictures, or a zip"),
    ],
)
def test_a_pattern_that_does_not_fit_is_one_message(tmp_path, pattern, message):
    with pytest.raises(ValueError, match=message):
        load(sharded(tmp_path) / pattern)


def test_shards_are_listed_once_and_again_when_they_change(tmp_path, monkeypatch):
    folder, read = sharded(tmp_path), []
    monkeypatch.setattr(shards, "members", lambda path: read.append(path.name) or members(path))
    first = load(folder).summary.fingerprint
    assert load(folder).summary.fingerprint == first
    assert len(read) == 4
    write(folder / "00003.tar", [file for i in range(30, 39) for file in example(i)])
    assert load(folder).summary.fingerprint != first
    assert read[4:] == ["00003.tar"]
