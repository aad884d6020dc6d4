"""Signals in a process of their own, for they end it."""

import signal
import subprocess
import sys
import time

from tests.toys import ROOT

PROGRAM = """
import time
from distill_jax.signals import StopFlag

stop = StopFlag(grace=0.5).install()
print("up", flush=True)
began = time.monotonic()
while time.monotonic() < began + {seconds}:
    time.sleep(0.1)
    if {polls} and stop():
        time.sleep(1.5)
        print("saved", flush=True)
        raise SystemExit(128 + stop.signal)
"""


def ended(polls, number, seconds=60):
    """Exit code, what was printed, and the seconds from the signal to the end."""
    program = PROGRAM.format(polls=polls, seconds=seconds)
    command, streams = [sys.executable, "-c", program], {"stdout": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.STDOUT, text=True, **streams)
    assert process.stdout.readline() == "up\n"
    began = time.monotonic()
    process.send_signal(number)
    output = process.communicate(timeout=30)[0]
    return process.returncode, output, time.monotonic() - began


def test_a_signal_that_nothing_polls_ends_the_process_after_its_grace_with_its_exit_code():
    code, output, seconds = ended(False, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM
    assert "goes on from the last saved state" in output
    assert 0.4 < seconds < 10


def test_a_signal_that_was_polled_leaves_all_the_time_to_save():
    code, output, seconds = ended(True, signal.SIGINT)
    assert code == 128 + signal.SIGINT
    assert output == "saved\n"
    assert seconds > 1.4
