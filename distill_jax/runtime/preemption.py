"""Being asked to stop: Ctrl-C, SIGTERM and preemption notices set a flag that the run polls."""

import os
import signal
import sys
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils

GRACE = 20.0  # Seconds; machines are taken away 30 after the notice, most often.


class StopFlag:
    """Whether, and by which signal, the process was asked to stop.

    The first SIGINT or SIGTERM sets the flag, and the run saves at its next opportunity. A second
    SIGINT raises KeyboardInterrupt at once. Before the first poll, while states are read and the
    first program is compiled, there is nothing to save: after `grace` seconds of that the process
    ends with the exit code of the signal. Later it waits for a poll however long that takes.

    In a run of several processes JAX hears SIGTERM, to any of them, and lets all of them see it at
    the same poll; so all must poll in step. SIGINT is passed on as SIGTERM.

    Args:
      grace: in seconds.
    """

    def __init__(self, grace: float = GRACE):
        self.signal: int | None = None
        self._grace, self._polls, self._together = grace, 0, False

    def install(self) -> "StopFlag":
        """Takes over SIGINT and SIGTERM; only from the main thread, after distributed.start."""
        self._together = jax.process_count() > 1
        if self._together:
            signal.signal(signal.SIGINT, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            return self
        read, write = os.pipe()
        os.set_blocking(write, False)
        # Python runs handlers between two lines of Python; the thread hears at once.
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(read,), daemon=True).start()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)
        return self

    def __call__(self) -> bool:
        """Whether to stop."""
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
        """Ends the process where nothing was polled within the grace after a signal."""
        number = os.read(pipe, 1)[0]
        threading.Event().wait(self._grace)
        if not self._polls:
            sys.stderr.write(
                "stopped before the first iteration was done. The same command goes on from the "
                "last saved state.\n"
            )
            sys.stderr.flush()
            os._exit(128 + number)
