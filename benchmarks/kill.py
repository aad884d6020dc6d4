"""Kills a chain at random moments, and compares its results with an undisturbed run.

    python benchmarks/kill.py                                # 12 of each kind, 1 and 2 processes
    python benchmarks/kill.py --each=50 --kinds=SIGKILL,SIGTERM
    python benchmarks/kill.py --config=configs/digits_guided.py --config.keep=3    # the full size
    python benchmarks/kill.py --config=benchmarks/kill_chains.py:images   # or :roles, :adapted

For each number of processes there is first an undisturbed run. Then the same command is started
repeatedly, and each time gets a signal at a random moment, until it ends by itself. This is
repeated in new workdirs until all signals are sent. A run gets signals of one kind. Every final
weight must equal that of the undisturbed run bit for bit, every row of the report must be equal
except for its seconds, and no finished stage may be lost; otherwise the exit code is 1. Unknown
arguments go to the command. benchmarks/faults.py has the faults that are no signals.

Half of the moments are uniform over the remaining time of an undisturbed run. The others are in its
first seconds, or up to a tenth of a second after a sign: a line about a program (compilation) or a
scalar (training), the directory of an unfinished state or network (saving), a row of the report
(evaluation). A random one of several processes gets the signal. After a SIGKILL the others have a
minute to end by themselves; then they are killed, as by a launcher. After another signal all must
end within two minutes, or during the start only the process that got it. `twice` is two SIGINTs
within a fifth of a second; `stop` is SIGSTOP, SIGCONT after two seconds, and then SIGTERM.

The phase in the table follows from the workdir at that moment: `start` before config.json exists,
`save` while there is a half-written directory, `evaluate` after all stages are finished, `compile`
if the newest line of the stage is about a program, otherwise `train`. Every second run shares one
compilation cache with earlier runs; the others compile everything.
"""

import argparse
import collections
import contextlib
import itertools
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np

from distill_jax import load
from distill_jax.runtime import logging

ROOT = pathlib.Path(__file__).parent.parent
# The signals of each kind, with the seconds before each.
KINDS = {
    "SIGKILL": [(0.0, signal.SIGKILL)],
    "SIGTERM": [(0.0, signal.SIGTERM)],
    "SIGHUP": [(0.0, signal.SIGHUP)],
    "SIGUSR1": [(0.0, signal.SIGUSR1)],
    "SIGQUIT": [(0.0, signal.SIGQUIT)],
    "SIGINT": [(0.0, signal.SIGINT)],
    "twice": [(0.0, signal.SIGINT), (0.1, signal.SIGINT)],
    "stop": [(0.0, signal.SIGSTOP), (2.0, signal.SIGCONT), (0.5, signal.SIGTERM)],
}
PHASES = ("start", "compile", "train", "save", "evaluate")
SIGNS = {  # Files that a run writes, by phase.
    "compile": ("config.json", "compilations.jsonl"),
    "train": ("s*/scalars.jsonl",),
    "save": ("s*/states/*orbax-checkpoint-tmp", "s*/final.partial/params*"),
    "evaluate": ("s*/grid.png", "report.rows.json*", "report.json*"),
}


class Command:
    """The command of a run, in one or more processes of this machine.

    Args:
      workdir: of the run; the logs lie beside it.
      flags: of the command.
      processes: how many; several have two devices each.
      cache: the directory of the compilation cache, None for the user's.
      patience: seconds that the others have after one was killed.
    """

    def __init__(self, workdir, flags, processes=1, cache=None, patience=60):
        self.workdir, self._flags, self._patience = workdir, flags, patience
        self._environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
        self._environment["JAX_NUM_CPU_DEVICES"] = "2" if processes > 1 else "1"
        self._environment.pop("JAX_COMPILATION_CACHE_DIR", None)
        if cache is not None:
            self._environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
            self._environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
        self._count, self._processes, self.began = processes, [], 0.0

    def start(self):
        self.began = time.time()
        command = [sys.executable, "-m", "distill_jax.main", f"--workdir={self.workdir}"]
        command += self._flags
        if self._count > 1:
            command += [f"--coordinator=localhost:{free_port()}", f"--num_processes={self._count}"]
        self._processes = []
        for index in range(self._count):
            mine = [f"--process_id={index}"] if self._count > 1 else []
            with open(self.log(index), "a") as log:
                self._processes.append(
                    subprocess.Popen(
                        command + mine, cwd=ROOT, env=self._environment, stdout=log, stderr=log
                    )
                )

    def log(self, index):
        return self.workdir.parent / f"{self.workdir.name}.{index}.log"

    def running(self):
        return any(process.poll() is None for process in self._processes)

    def wait(self, seconds):
        """Waits for the processes; returns shell exit codes, None for one that had to be killed."""
        end, codes = time.monotonic() + seconds, []
        for process in self._processes:
            try:
                code = process.wait(max(0, end - time.monotonic()))
                codes.append(code if code >= 0 else 128 - code)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                codes.append(None)
        return codes

    def signal(self, kind, index):
        """Signals one process; returns the exit codes of all, and the seconds until they ended."""
        for pause, number in KINDS[kind]:
            time.sleep(pause)
            self._processes[index].send_signal(number)
        began = time.monotonic()
        codes = self.wait(self._patience if kind == "SIGKILL" else 120)
        return codes, time.monotonic() - began


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def run_undisturbed(command):
    """Runs to the end; returns its seconds, and when its config and each stage were finished."""
    command.start()
    codes = command.wait(24 * 3600)
    assert set(codes) == {0}, (codes, command.log(0).read_text()[-2000:])
    marks = [command.workdir / "config.json", *sorted(command.workdir.glob("s*/final/params"))]
    return time.time() - command.began, [path.stat().st_mtime - command.began for path in marks]


def finished(workdir):
    return {path.parts[-3] for path in workdir.glob("s*/final/manifest.json")}


def newest(paths):
    """Returns the time of the last change of the files, some of which may vanish meanwhile."""
    times = [0.0]
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times)


def phase(command, stages):
    """Returns the phase of the run, as far as its files show it; see the top."""
    workdir = command.workdir
    if newest([workdir / "config.json"]) < command.began:
        return "start"
    if len(finished(workdir)) == stages:
        return "evaluate"
    half = [path for pattern in SIGNS["save"][:1] for path in workdir.glob(pattern)]
    half += workdir.glob("s*/final.partial/params*")
    if newest(half) > command.began:
        return "save"
    trained = newest(workdir.glob("s*/scalars.jsonl"))
    compiled = newest([workdir / "compilations.jsonl"])
    return "train" if trained > max(compiled, command.began) else "compile"


def wait_for_moment(command, seconds, start, rng):
    """Waits for a random moment of the next `seconds`, `start` of it imports, or for the end."""
    kind = rng.choice(PHASES) if rng.random() < 0.5 else None
    signs = SIGNS.get(kind, ())
    pause = rng.uniform(0, 0.1 if signs else start if kind == "start" else seconds)
    skip = rng.randrange(6) if signs else 0  # So that any stage may get the signal.
    seen, when = {}, None if signs else time.monotonic() + pause
    while command.running() and (when is None or time.monotonic() < when):
        for path in (path for pattern in signs for path in command.workdir.glob(pattern)):
            changed = newest([path])
            if when is None and changed > max(command.began, seen.get(path, 0)):
                seen[path] = changed
                skip -= 1
                when = time.monotonic() + pause if skip < 0 else None
        time.sleep(0.002)


class Tally:
    """The counts of one kind of signal and one number of processes."""

    def __init__(self):
        self.runs = self.lost = self.arrays = self.rows = 0
        self.hung = self.ended = 0
        self.phases, self.codes = collections.Counter(), collections.Counter()
        self.seconds = []


def disturb(command, kind, left, undisturbed, tally, rng):
    """Runs the command to its end, with up to `left` disturbances; returns how many there were."""
    whole, marks = undisturbed
    done, sent = finished(command.workdir), 0
    tally.runs += 1
    while True:
        command.start()
        if sent < left:
            since = marks[len(done)] if done else 0.0
            wait_for_moment(command, whole - since + marks[0], marks[0], rng)
        if sent == left or not command.running():
            codes = command.wait(24 * 3600)
            assert set(codes) == {0}, (codes, command.log(0).read_text()[-2000:])
            return sent
        where = phase(command, len(marks) - 1)
        index = rng.randrange(len(command._processes))
        codes, seconds = command.signal(kind, index)
        others = codes[:index] + codes[index + 1 :]
        sent += 1
        tally.phases[where] += 1
        tally.codes[codes[index]] += 1
        if kind != "SIGKILL":
            tally.codes.update(others)
            if where == "start":  # Before they join, processes do not get each other's signals.
                tally.ended += others.count(None)
            else:
                tally.hung += codes.count(None)
            tally.seconds += [seconds] * (None not in codes)
        elif others:
            tally.ended += others.count(None)
            tally.seconds += [seconds] * (None not in others)
        tally.lost += len(done - finished(command.workdir))
        done = finished(command.workdir)
        print(f"{command.workdir.name} {where} {codes} {seconds:.1f} s", flush=True)


def weights(workdir):
    """Returns all final parameters as bytes, by stage and path."""
    found = {}
    for stage in sorted(finished(workdir)):
        params = load(workdir / stage).params
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            found[stage, jax.tree_util.keystr(path)] = np.asarray(leaf).tobytes()
    return found


def rows(workdir):
    """Returns the report's rows without their seconds."""
    content = json.loads((workdir / "report.json").read_text())["rows"]
    return [{key: row[key] for key in row if "seconds" not in key} for row in content]


def compare(workdir, expected, tally):
    """Returns how many arrays and rows differ from `expected`, and adds that to the tally."""
    ours, theirs = weights(workdir), weights(expected)
    assert theirs
    arrays = sum(ours.get(key) != theirs.get(key) for key in ours.keys() | theirs.keys())
    pairs = itertools.zip_longest(rows(workdir), rows(expected))
    wrong = sum(mine != other for mine, other in pairs)
    tally.arrays, tally.rows = tally.arrays + arrays, tally.rows + wrong
    return arrays + wrong


def table(tallies):
    titles = ("processes", "kind", *PHASES, "signals", "runs", "stages lost")
    titles += ("arrays that differ", "report rows that differ", "exit codes")
    titles += ("not obeyed", "seconds until all had ended")
    titles += ("others that had to be killed",)
    lines = []
    for (processes, kind), tally in tallies.items():
        codes = ", ".join(f"{code} x {n}" for code, n in sorted(tally.codes.items(), key=str))
        seconds = [f"{f(tally.seconds):.1f}" for f in (np.median, max) if tally.seconds]
        lines.append(
            [
                str(processes),
                kind,
                *(str(tally.phases[name]) for name in PHASES),
                *map(str, (tally.phases.total(), tally.runs, tally.lost, tally.arrays, tally.rows)),
                codes,
                str(tally.hung),
                ", at most ".join(seconds) or "-",
                str(tally.ended),
            ]
        )
    return logging.table(titles, lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", default="configs/digits_guided.py:smoke")
    parser.add_argument("--each", type=int, default=12, help="of each kind, over all processes")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of disturbances")
    parser.add_argument("--processes", default="1,2", help="numbers of processes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", default="/tmp/kill")
    options, flags = parser.parse_known_args()
    flags = [f"--config={options.config}", *flags]
    folder, rng = pathlib.Path(options.folder), random.Random(options.seed)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    counts = [int(count) for count in options.processes.split(",")]
    tallies, began = {}, time.monotonic()
    for place, processes in enumerate(counts):
        expected, cache = folder / f"undisturbed_{processes}", folder / f"cache_{processes}"
        undisturbed = run_undisturbed(Command(expected, flags, processes, cache))
        print(f"undisturbed, {processes} process(es): {undisturbed[0]:.0f} s", flush=True)
        for kind in options.kinds.split(","):
            left = options.each * (place + 1) // len(counts) - options.each * place // len(counts)
            tally = tallies[processes, kind] = Tally()
            while left:
                name = f"{kind}_{processes}_{tally.runs + 1}"
                shared = cache if tally.runs % 2 else None
                command = Command(folder / name, flags, processes, shared)
                left -= disturb(command, kind, left, undisturbed, tally, rng)
                differ = compare(command.workdir, expected, tally)
                print(f"{name}: {differ} differ, {left} to go", flush=True)
                if not differ:
                    shutil.rmtree(command.workdir)
    print(f"\n{table(tallies)}\n\n{(time.monotonic() - began) / 60:.0f} minutes")
    wrong = (each.lost + each.arrays + each.rows + each.hung for each in tallies.values())
    return any(wrong)


if __name__ == "__main__":
    sys.exit(main())
