"""Tests of signals, in a separate process because they end it."""

import signal
import subprocess
import sys
import time

import pytest

from distill_jax.runtime import preemption
from tests.toys import ROOT

PROGRAM = """
import os, signal, time
from distill_jax.runtime import preemption

if {nohup}:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
preemption.PATIENCE = {patience}
stop = preemption.StopFlag(grace=0.5).install()
if {polls}:
    assert not stop()
print("up", flush=True)
end = time.monotonic() + {seconds}  # An iteration longer than the grace.
while time.monotonic() < end:
    time.sleep(0.1)
assert stop() != {nohup}
time.sleep(1.0)
print("saved", flush=True)
raise SystemExit(128 + (stop.signal or 0))
"""


def ended(polls, number, seconds, again=(), patience=10.0, nohup=False):
    """Returns the exit code, the output, and the seconds from the signal to the end.

    Args:
      polls: whether the program has polled before the signal.
      number: the signal.
      seconds: from the start to the next poll.
      again: seconds from each SIGINT that follows to the one before it.
      patience: of preemption.
      nohup: whether SIGHUP is ignored.
    """
    program = PROGRAM.format(polls=polls, seconds=seconds, patience=patience, nohup=nohup)
    command, streams = [sys.executable, "-c", program], {"stdout": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.STDOUT, text=True, **streams)
    assert process.stdout.readline() == "up\n"
    began = time.monotonic()
    process.send_signal(number)
    for pause in again:
        time.sleep(pause)
        process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=30)[0]
    return process.returncode, output, time.monotonic() - began


def test_a_signal_before_the_first_poll_ends_the_process_after_its_grace_with_its_exit_code():
    code, output, seconds = ended(False, signal.SIGTERM, 60)
    assert code == 128 + signal.SIGTERM
    assert "goes on from the last saved state" in output
    assert 0.4 < seconds < 10


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_after_a_poll_leaves_all_the_time_to_finish_an_iteration_and_save(number):
    code, output, seconds = ended(True, number, 1.0)
    assert code == 128 + number
    assert output == "saved\n"
    assert seconds > 1.5


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_within_the_save_is_heard_and_does_not_give_it_up(first):
    code, output, _ = ended(True, first, 0.5, again=(0.02, 0.2, 1.0))
    assert code == 128 + first
    assert output.count("still saving; Ctrl-C in 10 s gives up what is not saved") >= 1
    assert output.endswith("saved\n")


def test_a_ctrl_c_after_the_patience_gives_up():
    code, output, _ = ended(True, signal.SIGINT, 30, again=(0.05, 0.5), patience=0.4)
    assert "still saving" in output
    assert "KeyboardInterrupt" in output
    assert code == -signal.SIGINT  # How Python ends.


def test_a_second_ctrl_c_before_the_first_poll_interrupts_at_once():
    code, output, seconds = ended(False, signal.SIGINT, 30, again=(0.1,))
    assert "KeyboardInterrupt" in output
    assert code == -signal.SIGINT


def test_under_nohup_a_lost_terminal_is_ignored():
    code, output, _ = ended(True, signal.SIGHUP, 0.5, nohup=True)
    assert (code, output) == (128, "saved\n")
