"""Tests of damaged small files of a workdir: they are set aside by name, and block no run."""

import json

import numpy as np
import pytest
from etils import epath

from distill_jax import sweep
from distill_jax.config import base
from distill_jax.evaluation import compare, pictures
from distill_jax.run.claim import claim
from distill_jax.runtime import logging

GOOD = b'{"step": 1, "loss": 0.5}\n'
ROW = {"run": "a", "config": {}}
LINES = {
    "a number": b"5\n",
    "no step": b'{"a": 1}\n',
    "null": b"null\n",
    "no UTF-8": b"\xff\xfe\n",
    "NULs": b"\0" * 4096 + b"\n",
    "a text as step": b'{"step": "x"}\n',
    "nested": b"[" * 100_000 + b"\n",
    "long": b"\0" * (3 << 20),
}
WHOLE = {
    "cut": b'{"made_of": {}, "rows": [',
    "empty": b"",
    "a list": b"[]",
    "null": b"null",
    "no UTF-8": b"\xff\xfe\0",
    "NULs": b"\0" * 500,
    "nested": b"[" * 100_000,
}
ROWS = {
    **WHOLE,
    "no rows": b'{"made_of": {}}',
    "a number of rows": b'{"made_of": {}, "rows": 5}',
    "another row": b'{"made_of": {}, "rows": [{"a": 1}]}',
    "nothing": b'{"rows": []}',
}


@pytest.fixture
def folder(tmp_path):
    return epath.Path(tmp_path)


def cases(contents):
    return pytest.mark.parametrize("content", contents.values(), ids=contents)


@cases(LINES)
def test_a_damaged_log_is_set_aside_and_the_stage_goes_on_with_the_lines_that_can_be_read(
    folder, capsys, content
):
    path = folder / "scalars.jsonl"
    path.write_bytes(GOOD + content + b'{"step": 2}\n{"step": 9}\n')
    logging.StageLog(folder, "s00", 10, 5).close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()][0] == 1
    assert (folder / "scalars.jsonl.damaged").read_bytes().startswith(GOOD + content)
    assert f"{path}: damaged (line 2); kept as scalars.jsonl.damaged" in capsys.readouterr().out


def test_a_folder_in_the_place_of_a_log_is_set_aside(folder, capsys):
    for name in ("scalars.jsonl", "environment.jsonl"):
        (folder / name).mkdir()
    logging.StageLog(folder, "s00", 10, 5).close()
    logging.append_line(folder / "environment.jsonl", {"host": "a"})
    assert (folder / "scalars.jsonl").is_file() and (folder / "scalars.jsonl.damaged").is_dir()
    assert json.loads((folder / "environment.jsonl").read_text()) == {"host": "a"}
    assert capsys.readouterr().out.count("damaged (a folder)") == 2


def test_a_last_line_that_a_kill_cut_is_dropped_in_silence(folder, capsys):
    (folder / "scalars.jsonl").write_bytes(GOOD + b'{"step": 2, "lo')
    logging.StageLog(folder, "s00", 10, 5).close()
    assert json.loads((folder / "scalars.jsonl").read_text()) == {"step": 1, "loss": 0.5}
    assert capsys.readouterr().out == ""


@cases(LINES)
def test_a_damaged_row_of_a_sweep_is_measured_again(folder, content):
    path = folder / "rows.jsonl"
    path.write_bytes(json.dumps(ROW).encode() + b"\n" + content)
    assert sweep._read_rows(path) == {"a": ROW}
    assert (folder / "rows.jsonl.damaged").exists()
    assert json.loads(path.read_text()) == ROW


@cases(ROWS)
def test_a_damaged_report_is_set_aside_and_measured_again(folder, capsys, content):
    (folder / "report.json").write_bytes(content)
    assert compare._rows(folder / "report.json", {}) is None
    assert (folder / "report.json.damaged").read_bytes() == content
    assert "report.json: damaged" in capsys.readouterr().out


@cases(WHOLE)
def test_a_damaged_config_is_one_message_and_force_sets_it_aside(folder, content):
    path, config = folder / "config.json", base()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"config\.json .*--resume=force") as caught:
        claim(folder, config, force=False)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == content
    claim(folder, config, force=True)
    assert json.loads(path.read_text()) == json.loads(config.to_json())
    assert (folder / "config.json.damaged").read_bytes() == content


def test_a_picture_is_whole_unless_it_is_cut_empty_or_absent(folder):
    path = folder / "grid.png"
    assert not pictures.is_whole(path)
    pictures.save_grid(path, np.zeros((2, 8, 8, 1), np.float32), 2)
    assert pictures.is_whole(path)
    for content in (path.read_bytes()[:-4], b"", b"\0" * 900):
        path.write_bytes(content)
        assert not pictures.is_whole(path)
