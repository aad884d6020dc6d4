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


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119.0, "119 s"), (125.0, "2 min"), (3600.0, "1 h 00 min"), (9e3, "2 h 30 min")],
)
def test_times_are_in_words(seconds, text):
    assert logging.in_time(seconds) == text


def test_the_time_left_counts_the_later_stages(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(logging.time, "monotonic", lambda: now[0])
    progress = logging.Progress("s01_guided (2/3)", 100, 20, after=300.0)
    now[0] = 60.0
    progress.update(40, "loss 0.5")  # 3 seconds each; 60 are left, and 360 in all.
    progress.close()
    line = capsys.readouterr().out
    assert "s01_guided (2/3): 40/100, loss 0.5, 3 min left, about 18 min in all" in line
    logging.Progress("cache", 2).update(2, "")
    assert "cache: 2/2, 0 s left" in capsys.readouterr().out
