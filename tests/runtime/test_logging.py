import json
import re

import pytest
from etils import epath

from distill_jax.runtime import logging


def logged(directory, capsys, **options):
    """Returns the log line of a stage of 4 iterations, and the text on the terminal."""
    log = logging.StageLog(epath.Path(directory), "s00", 4, 0, **options)
    log.log(4, [{"loss": 0.5}] * 4)
    log.close()
    (line,) = (directory / "scalars.jsonl").read_text().splitlines()
    return json.loads(line), capsys.readouterr().out


def test_a_line_has_the_speed_in_updates_images_and_of_the_peak(tmp_path, capsys):
    line, shown = logged(tmp_path, capsys, images=32, ideal=1e-6)
    speed = line["updates_per_second"]
    assert line["images_per_second"] == pytest.approx(32 * speed)
    assert line["mfu"] == pytest.approx(1e-6 * speed)
    assert f"{line['images_per_second']:,.0f} images/s, {line['mfu']:.0%} MFU" in shown


def test_without_a_known_peak_there_is_no_mfu(tmp_path, capsys):
    line, shown = logged(tmp_path, capsys, images=32)
    assert "mfu" not in line
    assert "MFU" not in shown


def test_one_is_counted_without_an_s():
    assert [logging.counted(n, "call") for n in (0, 1, 2)] == ["0 calls", "1 call", "2 calls"]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_line_of_a_log_has_the_time_of_day_outside_a_terminal(capsys, monkeypatch, terminal):
    monkeypatch.setattr(logging, "live", lambda: terminal)
    logging.say("one")
    logging.show("| table |")
    line, table = capsys.readouterr().out.splitlines()
    assert re.fullmatch("one" if terminal else r"\[\d\d:\d\d:\d\d\] one", line)
    assert table == "| table |"
