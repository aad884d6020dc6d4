"""Tests of signals, in a separate process because they end it."""

import signal
import subprocess
import sys
import time

from tests.toys import ROOT

PROGRAM = """
import time
from distill_jax.runtime.preemption import StopFlag

stop = StopFlag(grace=0.5).install()
if {polls}:
    assert not stop()
print("up", flush=True)
time.sleep({seconds})  # An iteration longer than the grace.
assert stop()
time.sleep(1.0)
print("saved", flush=True)
raise SystemExit(128 + stop.signal)
"""


def ended(polls, number, seconds):
    """Returns the exit code, the output, and the seconds from the signal to the end."""
    program = PROGRAM.format(polls=polls, seconds=seconds)
    command, streams = [sys.executable, "-c", program], {"stdout": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.STDOUT, text=True, **streams)
    assert process.stdout.readline() == "up\n"
    began = time.monotonic()
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    return process.returncode, output, time.monotonic() - began


def test_a_signal_before_the_first_poll_ends_the_process_after_its_grace_with_its_exit_code():
    code, output, seconds = ended(False, signal.SIGTERM, 60)
    assert code == 128 + signal.SIGTERM
    assert "goes on from the last saved state" in output
    assert 0.4 < seconds < 10


def test_a_signal_after_a_poll_leaves_all_the_time_to_finish_an_iteration_and_save():
    code, output, seconds = ended(True, signal.SIGINT, 1.5)
    assert code == 128 + signal.SIGINT
    assert output == "saved\n"
    assert seconds > 2.0
