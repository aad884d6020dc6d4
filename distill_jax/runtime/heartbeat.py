"""Progress of a process: a file that it touches, and its end when it makes none."""

import faulthandler
import os
import pathlib
import sys
import threading
from typing import Any

import jax

STALLED = 75  # Exit code; launchers start the process again.


class _Progress:
    """The signs of progress so far, and the file that each of them touches."""

    count = 0
    file: pathlib.Path | None = None


def beat() -> None:
    """Records progress: iterations fetched, a state saved, a batch drawn, a program compiled."""
    _Progress.count += 1
    if _Progress.file is not None:
        _Progress.file.touch()


def watch(file: str | None, stall_minutes: float) -> None:
    """Touches a file at each sign of progress, and ends the process if there is none for long.

    Time in which the process stands still, after a SIGSTOP or in a suspended machine, does not
    count. The compilation of one program does, so the limit must be longer than that.

    Args:
      file: local file to touch, None for none.
      stall_minutes: the limit; 0 for none. At the end, the stacks of all threads are printed.

    Raises:
      OSError: if the file cannot be written.
    """
    _Progress.file = pathlib.Path(file) if file else None
    if not (file or stall_minutes):
        return
    beat()
    jax.monitoring.register_event_duration_secs_listener(_heard)
    if stall_minutes:
        threading.Thread(target=_wait, args=(60 * stall_minutes,), daemon=True).start()


def _heard(event: str, duration_secs: float, **details: Any) -> None:
    """Counts a compiled program as progress."""
    if event.endswith("backend_compile_duration"):
        beat()


def _wait(limit: float) -> None:
    """Ends the process after `limit` seconds without progress, as far as it ran in them."""
    seen, silent, tick = -1, 0.0, min(10.0, limit / 10)
    while silent < limit:
        if seen != _Progress.count:
            seen, silent = _Progress.count, 0.0
        threading.Event().wait(tick)
        silent += tick
    sys.stderr.write(f"no progress in {limit / 60:g} minutes; the stacks of all threads:\n")
    sys.stderr.flush()
    faulthandler.dump_traceback(all_threads=True)
    os._exit(STALLED)
