"""Logging: lines and progress bars on the terminal, scalars in files, Markdown tables."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from tensorboardX import SummaryWriter
from tqdm import tqdm

from distill_jax.runtime import distributed
from distill_jax.runtime.files import append, replace, set_aside

MAX_LINE = 2**20  # Bytes of a line in a JSONL file.


def live() -> bool:
    """Returns whether a person watches the output: in a terminal or a notebook."""
    return sys.stdout.isatty() or "ipykernel" in sys.modules


@contextlib.contextmanager
def _terminal() -> Iterator[None]:
    """Lets a run go on in silence when its terminal, or the reader of its output, has ended."""
    try:
        yield
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def say(text: str) -> None:
    """Prints a line of a log, see `show`; outside a terminal it begins with the time of day."""
    show(text if live() else time.strftime("[%H:%M:%S] ") + text)


def show(text: str) -> None:
    """Prints a result, such as a table, above any progress bar, from process 0 only."""
    if distributed.first():
        with _terminal():
            tqdm.write(text)
            sys.stdout.flush()  # Users read the log file during the run.


def set_damaged_aside(path: epath.Path, fault: str) -> None:
    """Renames a damaged file or directory to NAME.damaged, from process 0 only, and says so."""
    if distributed.first():
        aside = set_aside(path, path.parent / f"{path.name}.damaged")
        say(f"{path}: damaged ({fault}); kept as {aside.name}")


def append_line(path: epath.Path, content: Mapping[str, Any]) -> None:
    """Appends a line to a JSONL file; a folder in its place is set aside."""
    if path.is_dir():
        set_damaged_aside(path, "a folder")
    append(path, json.dumps(content) + "\n")


def read_lines(path: epath.Path, **fields: type) -> list[dict[str, Any]]:
    """Returns the objects with these fields in a JSONL file; [] if there is no file.

    A kill may cut the last line. A file with any other damage is set aside, and said; what can be
    read of it is returned. So is a folder in its place.

    Args:
      path: path of the file.
      **fields: type of every field that a line needs.
    """
    found, damaged, number = [], "", 0
    if not path.exists():
        return []
    if path.is_dir():
        set_damaged_aside(path, "a folder")
        return []
    with path.open("rb") as file:
        while line := file.readline(MAX_LINE):
            number += 1
            content = None
            with contextlib.suppress(ValueError, RecursionError):
                content = json.loads(line)
            if isinstance(content, dict) and all(
                isinstance(content.get(name), kind) for name, kind in fields.items()
            ):
                found.append(content)
            elif line.endswith(b"\n") or len(line) == MAX_LINE:
                damaged = damaged or f"line {number}"
    if damaged:
        set_damaged_aside(path, damaged)
    return found


def counted(num: int, noun: str) -> str:
    """Returns a number and its noun: 1 call, 2 calls."""
    return f"{num} {noun}" if num == 1 else f"{num} {noun}s"


def in_time(seconds: float) -> str:
    """Returns a time in words: 59 s, 5 min or 2 h 30 min."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


class Progress:
    """A progress bar in a terminal or notebook; elsewhere, a line every ten seconds.

    Args:
      title: title of the bar.
      total: number of items.
      start: number of finished items.
      after: work that follows, in items of this bar; the time left counts it separately.
    """

    def __init__(self, title: str, total: int, start: int = 0, after: float = 0.0):
        hidden = not (live() and distributed.first())
        self._bar = tqdm(
            desc=title, total=total, initial=start, disable=hidden, file=sys.stdout, leave=False
        )
        self._title, self._total, self._start, self._done = title, total, start, start
        self._after = after
        self._began = self._spoke = time.monotonic()

    def update(self, done: int, note: str) -> None:
        """Shows the number of finished items, and a note such as the loss; "" for none."""
        now = time.monotonic()
        each, items = (now - self._began) / max(1, done - self._start), self._total - done
        whole = f", about {in_time(each * (items + self._after))} in all" if self._after else ""
        with _terminal():
            self._bar.set_postfix_str(note + whole, refresh=False)
            self._bar.update(done - self._done)
        self._done = done
        if done == self._total or (self._bar.disable and now - self._spoke > 10):
            left = f"{in_time(each * items)} left{whole}"
            say(f"{self._title}: {done}/{self._total}, {f'{note}, ' if note else ''}{left}")
            self._spoke = now

    def close(self) -> None:
        """Removes the bar from the terminal."""
        with _terminal():
            self._bar.close()


def followed(title: str, batches: Iterable[np.ndarray], total: int) -> Iterator[np.ndarray]:
    """Yields batches of `total` rows together, with a progress bar."""
    progress, done = Progress(title, total), 0
    try:
        for rows in batches:
            yield rows
            done += len(rows)
            progress.update(done, counted(done, "image"))
    finally:
        progress.close()


def _cut(path: epath.Path, start: int) -> list[dict[str, Any]]:
    """Drops the lines of an earlier attempt after iteration `start`, and returns the others."""
    kept = [line for line in read_lines(path, step=int) if line["step"] <= start]
    replace(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
    return kept


class StageLog:
    """The log of one stage's scalars: scalars.jsonl, TensorBoard events and the progress bar.

    Measures of samples in training are lines of quality.jsonl.

    Args:
      directory: directory of the stage; lines of an earlier attempt after `start` are dropped.
      title: title of the bar.
      total: number of iterations of the stage.
      start: number of finished iterations.
      images: number of images in the batches of one iteration.
      ideal: seconds that the FLOPs of an iteration take at the peak of the devices, None if that
        is unknown. distill_jax.run.flops counts the FLOPs of the method's gradient. XLA's count
        of the compiled program includes elementwise operations and, on GPUs, lacks library calls.
      after: work of the later stages, in iterations of this one.

    Attributes:
      measured: the lines of quality.jsonl up to `start`.
    """

    def __init__(
        self,
        directory: epath.Path,
        title: str,
        total: int,
        start: int,
        images: int = 0,
        ideal: float | None = None,
        after: float = 0.0,
    ):
        self._images, self._ideal = images, ideal
        self._progress = Progress(title, total, start, after)
        self._step, self._time, self._cpu = start, time.monotonic(), time.process_time()
        self._gaps: list[float] = []
        self.measured: list[dict[str, Any]] = []
        self._lines: epath.Path | None = None
        self._events: SummaryWriter | None = None
        if distributed.first():
            self._lines = directory / "scalars.jsonl"
            _cut(self._lines, start)
            self._quality = directory / "quality.jsonl"
            if self._quality.exists():
                self.measured = _cut(self._quality, start)
            self._events = SummaryWriter(str(directory), purge_step=start + 1)

    def log(self, step: int, values: list[dict[str, float]]) -> None:
        """Records the means over the iterations since the previous call."""
        now, cpu = time.monotonic(), time.process_time()
        mean = {name: float(np.mean([v[name] for v in values])) for name in values[0]}
        speeds = self._speeds((step - self._step) / max(now - self._time, 1e-9))
        spent, self._step, self._time, self._cpu = cpu - self._cpu, step, now, cpu
        speed, images = speeds["updates_per_second"], speeds["images_per_second"]
        shown = f"{self._measure(mean)}, {speed:.{0 if speed >= 10 else 2}f} updates/s, "
        shown += f"{images:,.0f} images/s"
        self._progress.update(step, shown + (f", {speeds['mfu']:.0%} MFU" if self._ideal else ""))
        if self._lines and self._events:
            line = {"step": step, **mean, **speeds, "cpu_seconds": spent}
            append(self._lines, json.dumps(line) + "\n")
            for name, value in {**mean, **speeds}.items():
                self._events.add_scalar(name, value, step)

    def measure(self, step: int, values: Mapping[str, float], line: Mapping[str, Any]) -> None:
        """Records measures of samples: a line in quality.jsonl, and `values` for TensorBoard."""
        append_line(self._quality, line)
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leaves the time of the block out of the speeds of training."""
        began, cpu = time.monotonic(), time.process_time()
        yield
        self._time += time.monotonic() - began
        self._cpu += time.process_time() - cpu

    def _speeds(self, speed: float) -> dict[str, float]:
        """Returns the speeds for so many iterations per second; with `ideal`, also the MFU."""
        speeds = {"updates_per_second": speed, "images_per_second": speed * self._images}
        return {**speeds, "mfu": speed * self._ideal} if self._ideal else speeds

    def _measure(self, mean: dict[str, float]) -> str:
        """Returns the progress of the training in words: the loss, or the score gap and its trend.

        The loss of a score-matching method is no measure of progress: at the optimum of its fake
        network it is the divergence times a constant that may be zero or negative.
        """
        if "score_gap" not in mean:
            return f"loss {mean['loss']:.4f}"
        self._gaps.append(mean["score_gap"])
        earlier = self._gaps[-10:-5] or self._gaps[:1]
        now, before = float(np.mean(self._gaps[-5:])), float(np.mean(earlier))
        return f"score gap {now:.4f} ({now / max(before, 1e-30) - 1:+.0%} over the last lines)"

    def close(self) -> None:
        """Flushes the files and ends the bar."""
        self._progress.close()
        if self._events:
            self._events.close()


@contextlib.contextmanager
def compilations(path: epath.Path) -> Iterator[None]:
    """Appends a line {"function", "seconds"} for every program that XLA compiles in the context.

    For a program in the persistent cache, the seconds are the time to read it.
    """
    listening = distributed.first()

    def listen(event: str, duration_secs: float, **details: Any) -> None:
        if listening and event.endswith("backend_compile_duration"):
            line = {"function": details.get("fun_name", ""), "seconds": round(duration_secs, 3)}
            with contextlib.suppress(OSError):  # A run needs no list of its programs.
                append_line(path, line)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        listening = False  # JAX cannot remove a listener.


def table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a Markdown table, whose columns are padded to align on a terminal."""
    cells = [[str(cell) for cell in row] for row in [titles, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(titles))]
    padded = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
    padded.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(row) + " |" for row in padded)
