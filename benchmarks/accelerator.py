"""Measures how well this accelerator is used: times the presets' updates, then trains.

    python benchmarks/accelerator.py --minutes=10 --data_dir=DIR --out=runs/accelerator
    python benchmarks/accelerator.py --minutes=2 --out=/tmp/smoke --size=smoke    # tiny, anywhere

OUT/table.md is rewritten after every measurement, from OUT/rows.jsonl. The same command continues:
finished rows are not measured again, and training continues from its newest state. --minutes limits
a call with compilation and pictures, so few long calls get further than many short ones.

Every measurement runs in its own process. So it has its own peak of memory, may run out of memory
or crash, and is ended when its time is up. PyTorch and diffusers are measured where installed.
"""

import argparse
import contextlib
import importlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # This file and the processes that it starts are scripts.

from benchmarks.accelerator_table import as_table  # noqa: E402

GAIN = 1.05  # Least gain in images per second for which a batch is doubled.
SMOKE = 2  # Images of an update at smoke size.
MIN_SECONDS = 20  # Processes with fewer seconds are not started.
MARGIN = 15  # Seconds to finish an update and save its state.
NO_MEMORY = ("resource_exhausted", "out of memory", "memoryerror")  # XLA, PyTorch, Python.
ASIDE = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
FINAL = ("measured", "does not fit", "not installed")  # Results that are not tried again.


class Row(NamedTuple):
    """A measurement for the table, with one line, or one line per batch size.

    Attributes:
      name: name of the measurement.
      measure: "module:function" of benchmarks/; it is called with the task, `batch` and `seconds`,
        and returns the columns of the line.
      task: other arguments of the function.
      share: largest share of a call's minutes while other rows wait.
      batch: images per update, or the name of the row whose best batch is taken.
      grows: whether the batch is doubled until that gains less than GAIN or does not fit. A first
        batch that does not fit is halved.
      on_cpu: batch on CPUs, where it does not grow; None for a row that is left out there.
      environment: environment variables of its process.
      needs: a third-party package that it needs.
    """

    name: str
    measure: str
    task: Mapping[str, Any]
    share: float = 0.2
    batch: int | str = 256
    grows: bool = False
    on_cpu: int | None = 1
    environment: Mapping[str, str] = {}
    needs: str = ""


def jax_update(name, config, stage, size="full", **options):
    """Returns the row of a preset's update in JAX, as a run compiles it."""
    task = {"config": config, "stage": stage, "size": size}
    return Row(name, "accelerator_update:update", task, **options)


def torch_update(name, config, stage, size="full", needs="torch", **options):
    """Returns the row of an update in PyTorch or diffusers; JAX plans on the CPU, in low effort."""
    options.update(environment=ASIDE, needs=needs)
    row = jax_update(name, config, stage, size, **options)
    return row._replace(measure=f"accelerator_{needs}:update")


def samples(calls, guided=False):
    """Yields the rows of sampling one image of Stable Diffusion 1.5, with JAX and diffusers."""
    for what in ("latents", "512 px images"):
        times = f"{calls} x 2 calls" if guided else f"{calls} call{'s' * (calls > 1)}"
        task = {"calls": calls, "guided": guided, "decode": what != "latents", "size": "full"}
        row = Row(f"SD 1.5, {times}, {what}", "accelerator_sample:sample", task, batch=1)
        other = {"needs": "diffusers", "environment": ASIDE}
        yield from (row, row._replace(measure="accelerator_diffusers:sample", **other))


# Rows in the order of their importance. The function of a Row is in another file of this folder.
IMAGENET, CIFAR = "ImageNet 64 UNet, stage 1", ("cifar10_guided", "s00", "gpu")
SD, SAMPLES = "SD 1.5, stage 1", (*samples(4), *samples(1), *samples(50, guided=True))
ROWS = (
    jax_update(IMAGENET, "imagenet64_guided", "s01", share=0.45, batch=32, grows=True),
    jax_update("ImageNet 64 UNet, halving", "imagenet64_guided", "s02", share=0.3, batch=IMAGENET),
    jax_update(SD, "latents", "s01", batch=4, grows=True, on_cpu=None),
    torch_update(SD, "latents", "s01", "full", "diffusers", batch=4, grows=True, on_cpu=None),
    *SAMPLES,
    jax_update("CIFAR-10 UNet, teacher", *CIFAR, on_cpu=4),
    torch_update("CIFAR-10 UNet, teacher", *CIFAR, on_cpu=4),
    jax_update("DiT-B, 256 tokens, teacher", "dit", "s00", batch=64, grows=True),
    torch_update("DiT-B, 256 tokens, teacher", "dit", "s00", batch="DiT-B, 256 tokens, teacher"),
    jax_update("ImageNet 64 UNet, teacher", "imagenet64_guided", "s00", batch=IMAGENET),
    torch_update("ImageNet 64 UNet, teacher", "imagenet64_guided", "s00", batch=IMAGENET),
    jax_update("digits MLP, teacher", "digits_guided", "s00", on_cpu=256),
)


class Bench:
    """One call of the command.

    Args:
      args: of the command line.
    """

    def __init__(self, args):
        self._args, self._total = args, 60 * args.minutes
        self._end = time.monotonic() + self._total
        self._out = pathlib.Path(args.out).absolute()
        self._out.mkdir(parents=True, exist_ok=True)
        self._lines = read_lines(self._out / "rows.jsonl")
        self._here = start("accelerator_update:device", {}, self.left, self._out)

    @property
    def left(self):
        """The remaining seconds of this call."""
        return self._end - time.monotonic()

    def run(self):
        """Runs all measurements, then trains."""
        if self._here["status"] != "measured":
            raise SystemExit(f"no device: {self._here['status']}; see {self._out / 'log.txt'}")
        rows = [row for row in ROWS if re.search(self._args.rows, row.name)]
        for share in (True, False):  # First every row has its share of time, then all that is left.
            for row in rows:
                self._measure(row, row.share * self._total if share else self._total)
        if self._args.data_dir or self._args.size == "smoke":
            self._train()
        self._write_table()
        left = sum(self._next_batch(row) is not None for row in rows)
        print(f"{self._out / 'table.md'}: {left or 'no'} rows left; the same command goes on")

    def _measure(self, row, share):
        """Measures the batches of a row within its share of the time."""
        began = time.monotonic()
        while (batch := self._next_batch(row)) is not None:
            before = [line for line in self._of(row) if line["asked"] == batch]
            if any(line["status"] == "failed" and not line["old"] for line in before):
                return  # The next call tries it again.
            seconds = min(share - (time.monotonic() - began), self.left)
            needed = [line["seconds"] for line in before or self._of(row)[-1:]]
            if seconds < max([MIN_SECONDS, *needed]) and self._args.size == "full":
                return
            print(f"{row.name}, {row.measure}, batch {batch} ...", flush=True)
            line = self._line(row, batch, seconds)
            self._add(line)
            if line["status"] not in FINAL:
                return

    def _line(self, row, batch, seconds):
        """Runs one measurement and records its line."""
        line = {**self._key(row.name, row.measure), "asked": batch, "batch": batch}
        if row.needs and not self._here[row.needs]:
            return {**line, "status": "not installed", "seconds": 0}
        task = {**row.task, "batch": batch, "seconds": 20 if self._cpu else 10}
        if self._args.size == "smoke":
            task.update(size="smoke", seconds=0)
        return {**line, **start(row.measure, task, seconds, self._out, row.environment)}

    def _next_batch(self, row):
        """Returns the next batch to measure; None if all are measured."""
        tried = {line["asked"]: line for line in self._of(row) if line["status"] in FINAL}
        if self._args.size == "smoke":
            return next_batch(tried, SMOKE, False)
        first = row.on_cpu if self._cpu else row.batch
        if isinstance(first, str):
            other = next(each for each in ROWS if each.name == first)
            first = best_batch(self._of(other))
        return next_batch(tried, first, row.grows and not self._cpu)

    def _of(self, row):
        """Returns the lines of a row that were measured on the same kind of devices."""
        key = self._key(row.name, row.measure)
        return [line for line in self._lines if key.items() <= line.items()]

    def _key(self, name, measure):
        """Returns the key of a line, which is the same for all its batches."""
        here = {name: self._here[name] for name in ("device", "count")}
        return {"row": name, "measure": measure, **here, "size": self._args.size}

    @property
    def _cpu(self):
        return self._here["platform"] == "cpu"

    def _add(self, line):
        """Appends a line to rows.jsonl and rewrites the table."""
        self._lines.append({**line, "old": False})
        with (self._out / "rows.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._write_table()
        print(f"  {line['status']} in {line['seconds']:.0f} s", flush=True)

    def _train(self):
        """Trains in the remaining time, then draws and measures the newest networks."""
        size = "small" if self._cpu else "gpu"
        size = "smoke" if self._args.size == "smoke" else size
        report = 60 * min(self._args.report_minutes, self._args.minutes / 4)
        data = os.path.abspath(self._args.data_dir)
        task = {"size": size, "data_dir": data, "workdir": str(self._out / "train")}
        seconds = self.left - report - MARGIN
        if size != "smoke" and seconds < MIN_SECONDS:
            return
        what = "a mixture" if size == "smoke" else f"cifar10_guided:{size}"
        steps = ("train", {"seconds": seconds}), ("draw", {"out": str(self._out / "report")})
        for name, more in steps if report else steps[:1]:
            line = {**self._key(f"{name} {what}", name), "asked": 0}
            print(f"{line['row']} ...", flush=True)
            found = start(f"accelerator_train:{name}", {**task, **more}, self.left, self._out)
            self._add({**line, **found})

    def _write_table(self):
        path = self._out / "table.md"
        path.with_suffix(".partial").write_text(as_table(self._lines, self._here))
        path.with_suffix(".partial").replace(path)


def next_batch(tried, first, grows):
    """Returns the batch to try after those in {batch: line}; None if no other is worth it."""
    if first is None or not tried:
        return first
    speeds = {n: line["images_per_second"] for n, line in tried.items() if fits(line)}
    if not speeds:
        gone = any(line["status"] == "not installed" for line in tried.values())
        return None if gone else min(tried) // 2 or None
    *before, last = sorted(tried)
    if not grows or last not in speeds:
        return None
    worth = not before or speeds[last] >= GAIN * speeds[before[-1]]
    return 2 * last if worth else None


def fits(line):
    return line["status"] == "measured"


def best_batch(lines):
    """Returns the batch with the most images per second; None if none is measured."""
    measured = [line for line in lines if fits(line)]
    return max(measured, key=lambda line: line["images_per_second"])["batch"] if measured else None


def start(measure, task, seconds, out, environment=()):
    """Runs a function of benchmarks/ in a process with a time limit and returns its result.

    Beside it stand "status", one of FINAL, "timed out" or "failed", and the "seconds" it took.
    """
    began, result = time.monotonic(), out / "result.json"
    result.unlink(missing_ok=True)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(out / "compilation_cache"))
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    given = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", **os.environ}  # There is no other process.
    given.update({"JAX_COMPILATION_CACHE_DIR": cache, "PYTHONPATH": path}, **dict(environment))
    words = json.dumps({"measure": measure, "task": task, "result": str(result)})
    command = [sys.executable, str(ROOT / "benchmarks" / "accelerator.py"), f"--one={words}"]
    with (out / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=ROOT, env=given, process_group=0
        )
        try:
            code = process.wait(max(seconds, 0.01))
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(process)
    found = json.loads(result.read_text()) if result.exists() else {"status": fate(code)}
    return {**found, "seconds": time.monotonic() - began}


def fate(code):
    """Returns in words how a process without a result ended, such as out of memory."""
    return {None: "timed out", -signal.SIGKILL: "does not fit"}.get(code, "failed")


def end(process):
    """Ends a process and its children, after time to save if it still runs."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(MARGIN)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def one(measure, task, result):
    """Runs a function in this process and writes its result."""
    module, _, name = measure.partition(":")
    try:
        found = getattr(importlib.import_module(f"benchmarks.{module}"), name)(**task)
        found = {"status": "measured", **found}
    except Exception as error:
        words = f"{type(error).__name__}: {error}".lower()
        if not any(sign in words for sign in NO_MEMORY):
            raise
        found = {"status": "does not fit"}
    path = pathlib.Path(result)
    path.with_suffix(".partial").write_text(json.dumps(found))
    path.with_suffix(".partial").replace(path)


def read_lines(path):
    """Reads the lines of earlier calls; ignores a last line that a kill cut short.

    What was not installed then may be now, and costs nothing to look for.
    """
    lines = []
    for text in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            lines.append({**json.loads(text), "old": True})
    return [line for line in lines if line.get("status") != "not installed"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10, help="of this call, everything in it")
    parser.add_argument("--data_dir", default="", help="TFDS folder with cifar10; else no training")
    parser.add_argument("--out", help="folder of the table, the training and its pictures")
    parser.add_argument("--size", choices=("full", "smoke"), default="full")
    parser.add_argument(
        "--rows", default="", help="only rows whose name has this, a regular expression"
    )
    parser.add_argument(
        "--report_minutes", type=float, default=2, help="kept for pictures and distances, 0: none"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(**json.loads(args.one))
        return
    if not args.out or args.minutes <= 0:
        parser.error("--out=DIR and more than 0 --minutes are needed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    Bench(args).run()


if __name__ == "__main__":
    main()
