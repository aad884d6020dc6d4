"""Being asked to stop: Ctrl-C and SIGTERM set a flag that the run polls."""

import signal
from types import FrameType


class StopFlag:
    """Whether, and by which signal, the process was asked to stop.

    The first SIGINT or SIGTERM sets the flag, and the run saves at its next opportunity. A second
    SIGINT raises KeyboardInterrupt at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def install(self) -> "StopFlag":
        """Takes over SIGINT and SIGTERM; only from the main thread."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._hear)
        return self

    def __call__(self) -> bool:
        """Whether to stop."""
        return self.signal is not None

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
