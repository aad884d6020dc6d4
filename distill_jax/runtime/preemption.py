"""Preemption: Ctrl-C, other signals and preemption notices set a flag that the run polls."""

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType

import jax
from jax.experimental import multihost_utils

GRACE = 20.0  # In seconds; most machines stop 30 seconds after the notice.
PATIENCE = 10.0  # In seconds; an earlier second Ctrl-C does not give up a save.
# Ctrl-C and a lost terminal, schedulers' notices and Ctrl-\\: after each of them the run saves.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGQUIT)


class StopFlag:
    """A flag that the first of SIGNALS sets; `signal` is the number of that signal.

    When the flag is set, the run saves at its next poll. A SIGINT that follows within PATIENCE
    seconds says so; a later one raises KeyboardInterrupt, which gives up what is not saved. Before
    the first poll, while states are read and the first program is compiled, there is nothing to
    save: a second SIGINT interrupts at once, and `grace` seconds after the signal the process ends
    with the signal's exit code. After the first poll the signal waits for the next poll, however
    long that takes. A SIGHUP that is ignored, as under nohup, stays ignored.

    In a run of several processes, JAX catches a SIGTERM to any process and reports it to all of
    them at the same poll, so all processes must poll equally often. The others of SIGNALS are
    forwarded as SIGTERM.

    Args:
      grace: seconds from the signal to the end of the process before the first poll.
    """

    def __init__(self, grace: float = GRACE):
        self.signal: int | None = None
        self._grace, self._polls, self._together = grace, 0, False
        self._heard = 0.0

    def install(self) -> "StopFlag":
        """Handles SIGNALS from now on; main thread only, after distributed.start."""
        self._together = jax.process_count() > 1
        nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        # Shells let background commands ignore SIGINT and SIGQUIT, but `kill` means what it says.
        heard = [n for n in SIGNALS if not (nohup and n == signal.SIGHUP)]
        if self._together:
            for number in heard:
                if number != signal.SIGTERM:
                    signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            return self
        read, write = os.pipe()
        os.set_blocking(write, False)
        # Python runs handlers only between two bytecodes; the thread sees the signal at once.
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()
        for number in heard:
            signal.signal(number, self._hear)
        return self

    def __call__(self) -> bool:
        """Returns whether the run should stop; counts as a poll."""
        self._polls += 1
        if self._together and multihost_utils.reached_preemption_sync_point(self._polls):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: sets the flag; a later SIGINT warns, and then interrupts."""
        if self.signal is None:
            self.signal, self._heard = number, time.monotonic()
            return
        if number != signal.SIGINT:
            return
        left = PATIENCE - (time.monotonic() - self._heard)
        if left < 0 or not self._polls:
            raise KeyboardInterrupt
        # Handlers interrupt other writes, so this one must not wait for a lock.
        text = f"\nstill saving; Ctrl-C in {left:.0f} s gives up what is not saved\n"
        with contextlib.suppress(OSError):  # The terminal may be gone.
            os.write(sys.stderr.fileno(), text.encode())

    def _watch(self, pipe: int) -> None:
        """Ends the process if there was no poll within the grace period after a signal."""
        number = os.read(pipe, 1)[0]
        threading.Event().wait(self._grace)
        if not self._polls:
            sys.stderr.write(
                "stopped before the first iteration was done. The same command goes on from the "
                "last saved state.\n"
            )
            sys.stderr.flush()
            os._exit(128 + number)
