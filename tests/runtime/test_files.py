"""Tests of files in an in-memory bucket, which like Cloud Storage cannot rename or append."""

import pathlib

import fsspec
import numpy as np
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from distill_jax.evaluation import pictures
from distill_jax.runtime.files import absolute, append, write_json


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
