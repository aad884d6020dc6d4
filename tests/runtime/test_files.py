"""Tests of files in an in-memory bucket, which like Cloud Storage cannot rename or append."""

import json
import os
import pathlib

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from distill_jax.evaluation import pictures
from distill_jax.runtime.files import absolute, append, default_workdir, read_json, write_json


class Bucket(MemoryFileSystem):
    protocol = ("gs", "gcs")

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").strip("/")

    def _open(self, path, mode="rb", **options):
        if "a" in mode:
            raise OSError("Cloud Storage adds to no object")
        return super()._open(path, mode, **options)


@pytest.fixture
def bucket():
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    return epath.Path("gs://bucket")


def test_a_path_is_made_absolute_unless_it_lies_in_a_bucket(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert absolute("runs/a") == epath.Path(tmp_path) / "runs" / "a"
    assert str(absolute("gs://bucket/runs/a")) == "gs://bucket/runs/a"


def test_lines_pictures_and_json_are_written_and_appended_in_a_bucket(bucket):
    for text in ("one\n", "two\n"):
        append(bucket / "lines.jsonl", text)
    assert (bucket / "lines.jsonl").read_text() == "one\ntwo\n"
    pictures.save_grid(bucket / "grid.png", np.zeros((4, 8, 8, 1), np.float32), 2)
    assert (bucket / "grid.png").read_bytes()[1:4] == b"PNG"
    for rows in ([], [1]):
        write_json(bucket / "report.json", {"rows": rows})
    assert (bucket / "report.json").read_text() == '{\n  "rows": [\n    1\n  ]\n}\n'


def test_the_home_directory_is_expanded():
    assert absolute("~/runs") == epath.Path(pathlib.Path.home()) / "runs"


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "no readable JSON"),
        (b"\0" * 100, "no readable JSON"),
        (b'{"a": "\xff"}', "no readable JSON .*utf-8"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "too many levels"),
        (b'{"a":' + b"[" * 100 + b"]" * 100 + b"}", "more than 64 levels"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "more than 64 bits"),
        (b'{"a": 100000000000000000000}', "more than 64 bits"),
        (rb'{"a": "x\u0000y"}', "NUL"),
        (rb'{"\ud800": 1}', "surrogates not allowed"),
        (b"[]", "holds a list; expected a dict"),
        (b" " * 1001, "more than 1,000 bytes"),
    ],
)
def test_json_that_cannot_be_used_is_one_message_with_the_name_of_its_file(
    content, cause, tmp_path
):
    (tmp_path / "a.json").write_bytes(content)
    limit = 1000 if len(content) == 1001 else 2**20
    with pytest.raises(ValueError, match=rf"{tmp_path}/a.json .*{cause}") as caught:
        read_json(tmp_path / "a.json", limit)
    assert len(str(caught.value)) < 500


def test_json_is_read_from_regular_files_and_buckets_only(bucket, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    for name, cause in (("pipe", "no regular"), ("zero", "no regular"), ("sparse", "more than")):
        with pytest.raises(ValueError, match=cause):
            read_json(tmp_path / name)
    with pytest.raises(ValueError, match="no regular"):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent")
    content = {"a": [-(2**63), 2**64 - 1, 0.5, None, True, "\U0001f600"]}
    write_json(bucket / "a.json", content)
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert read_json(bucket / "a.json") == read_json(tmp_path / "a.json") == content


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("configs/digits.py", "digits"),
        ("configs/digits.py:smoke", "digits_smoke"),
        ("configs/folder.py:/data/my pictures/,small", "folder_my_pictures_small"),
        ("configs/folder.py:~/pictures,small,64", "folder_pictures_small_64"),
        ("configs/folder.py:gs://bucket/cats", "folder_cats"),
    ],
)
def test_a_workdir_has_the_name_of_its_config_and_size(file, name):
    assert default_workdir(file) == f"runs/{name}"
