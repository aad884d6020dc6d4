"""Tests of the heartbeat and the time limit, in a separate process because they end it."""

import signal
import subprocess
import sys
import time

from tests.toys import ROOT

PROGRAM = """
import time, jax, sys
from distill_jax.runtime.heartbeat import beat, watch

watch(sys.argv[1], {seconds} / 60)
print("up", flush=True)
for _ in range({beats}):
    time.sleep(0.2)
    beat()
time.sleep({sleep})
print("through", flush=True)
"""


def start(file, seconds, beats, sleep):
    program = PROGRAM.format(seconds=seconds, beats=beats, sleep=sleep)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", program, str(file)], cwd=ROOT, **streams)
    assert process.stdout.readline() == "up\n"
    return process


def test_a_process_without_progress_prints_its_stacks_and_ends_with_code_75(tmp_path):
    process = start(tmp_path / "beat", 1, 10, 60)  # Twice as long with progress.
    began = time.monotonic()
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 75
    assert time.monotonic() - began > 2.5
    assert output == ""
    assert "no progress in" in errors
    assert "most recent call first" in errors


def test_a_process_that_stood_still_goes_on(tmp_path):
    process = start(tmp_path / "beat", 2, 0, 0.5)
    process.send_signal(signal.SIGSTOP)
    time.sleep(3)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=30)[0] == "through\n"
    assert process.returncode == 0


def test_each_sign_of_progress_touches_the_file_and_without_a_limit_nothing_ends(tmp_path):
    file = tmp_path / "beat"
    process = start(file, 0, 5, 0)
    first = file.stat().st_mtime_ns
    assert process.communicate(timeout=30) == ("through\n", "")
    assert file.stat().st_mtime_ns > first
