"""Preemption: Ctrl-C, SIGTERM and preemption notices set a flag that the run polls."""

import os
import signal
import sys
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

GRACE = 20.0  # In seconds; most machines stop 30 seconds after the notice.


class StopFlag:
    """A flag that the first SIGINT or SIGTERM sets; `signal` is the number of that signal.

    When the flag is set, the run saves at its next poll. A second SIGINT raises KeyboardInterrupt
    at once. Before the first poll, while states are read and the first program is compiled, there
    is nothing to save: `grace` seconds after the signal the process ends with the signal's exit
    code. After the first poll the signal waits for the next poll, however long that takes.

    In a run of several processes, JAX catches a SIGTERM to any process and reports it to all of
    them at the same poll, so all processes must poll equally often. SIGINT is forwarded as SIGTERM.

    Args:
      grace: seconds from the signal to the end of the process before the first poll.
    """

    def __init__(self, grace: float = GRACE):
        self.signal: int | None = None
        self._grace, self._polls, self._together = grace, 0, False

    def install(self) -> "StopFlag":
        """Handles SIGINT and SIGTERM from now on; main thread only, after distributed.start."""
        self._together = jax.process_count() > 1
        if self._together:
            signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            return self
        read, write = os.pipe()
        os.set_blocking(write, False)
        # Python runs handlers only between two bytecodes; the thread sees the signal at once.
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)
        return self

    def __call__(self) -> bool:
        """Returns whether the run should stop; counts as a poll."""
        self._polls += 1
        if self._together and multihost_utils.reached_preemption_sync_point(self._polls):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _hear(self, number: int, frame: FrameType | None) -> None:
        """The signal handler: sets the flag; a second SIGINT interrupts."""
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

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
