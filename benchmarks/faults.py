"""Faults that are no signals: two runs at once, kills at every rename, a full disk, a power cut.

    python benchmarks/faults.py                        # all of them; an hour on two cores
    python benchmarks/faults.py two power --every=20   # some, with one place of twenty

The chain has two stages that take seconds (kill_chains.py). After each fault the same command must
end with the weights and the report of an undisturbed run; otherwise it counts as lost, and the exit
code is 1.

    two        two runs begin in one workdir, up to two seconds apart: one must run, and the other
               must say who does
    renames    the run kills itself before each of its renames and removals of files
    disk       a disk that is full at each of several sizes; needs the right to mount a tmpfs
    power      what a power cut leaves at each moment at which something new is on the disk, twice:
               where the file system keeps the order of names, and where it keeps what was flushed
    commands   `sample`, `evaluate` and `teachers` are killed at random moments, and started again
"""

import argparse
import json
import os
import pathlib
import pickle
import random
import shutil
import subprocess
import sys
import time

import numpy as np

from distill_jax import load
from distill_jax.runtime import logging
from distill_jax.runtime.trees import by_name
from distill_jax.storage import safetensors
from distill_jax.storage.weights import of_array
from distill_jax.teachers import native

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # This file is a script.

from benchmarks import kill, power  # noqa: E402 - needs the path above.

CONFIG = f"--config={kill.ROOT / 'benchmarks' / 'kill_chains.py'}"
DISKS = (40, 100, 200, 400, 800, 1600)  # Sizes in kB.
# Runs a module, and kills itself before its n-th rename or removal below a folder; 0 counts them.
KILLED = """
import os, runpy, signal, sys, threading
number, folder, module = int(sys.argv[1]), sys.argv[2], sys.argv[3]
sys.argv, count, mutex = sys.argv[3:], 0, threading.Lock()

def heard(event, arguments):
    global count
    if event in ("os.rename", "os.remove") and str(arguments[0]).startswith(folder):
        with mutex:
            count += 1
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(heard)
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    print(f"renames: {count}")
"""
# Runs a module, and writes the cuts of power.Record into a file.
RECORDED = """
import pathlib, pickle, runpy, sys
from benchmarks import power
folder, file = sys.argv[1:3]
sys.argv = sys.argv[3:]
pathlib.Path(folder).mkdir()
with power.Record(folder).recording() as record:
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code
pathlib.Path(file).write_bytes(pickle.dumps(record.cuts))
"""


class Bench:
    """The folder of all workdirs, and the commands that run in it."""

    def __init__(self, folder, every, seed):
        self.folder, self.every, self.rng = folder, every, random.Random(seed)
        self.environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(kill.ROOT)}
        self.environment["JAX_COMPILATION_CACHE_DIR"] = str(folder / "cache")
        self.environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
        self.expected = folder / "undisturbed"
        code, output = self.ended(self.main(self.expected))
        assert code == 0, output[-2000:]

    def start(self, *command):
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [sys.executable, *map(str, command)]
        return subprocess.Popen(command, cwd=kill.ROOT, env=self.environment, **pipes)

    def main(self, workdir, *before):
        """Starts the training, through a program if one is given with its arguments."""
        return self.start(*(before or ("-m",)), "distill_jax.main", CONFIG, f"--workdir={workdir}")

    def ended(self, process):
        """Returns the exit code and the output of a process; the code is None after ten minutes."""
        try:
            output = process.communicate(timeout=600)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            return None, process.communicate()[0]
        return process.returncode, output

    def new(self, name):
        workdir = self.folder / name
        shutil.rmtree(workdir, ignore_errors=True)
        return workdir

    def goes_on(self, name, workdir):
        """Returns whether the same command ends with the results of the undisturbed run."""
        code, output = self.ended(self.main(workdir))
        right = code == 0 and kill.compare(workdir, self.expected, kill.Tally()) == 0
        print(f"{name}: {'right' if right else output[-2000:]}", flush=True)
        if right:
            shutil.rmtree(workdir)
        return right


def two(bench):
    """Returns whether one of two runs that begin at once ends, and the other names it; 20 times."""
    found = []
    for number in range(20):
        workdir = bench.new(f"two_{number}")
        first = bench.main(workdir)
        time.sleep(bench.rng.choice([0.0, bench.rng.uniform(0, 2)]))
        pair = [first, bench.main(workdir)]
        ends = [bench.ended(process) for process in pair]
        codes = [code for code, _ in ends]
        said = "".join(output for code, output in ends if code == 1)
        winner = pair[codes.index(0)].pid if 0 in codes else None
        right = sorted(codes, key=str) == [0, 1] and f"the run of process {winner} on " in said
        found.append(bench.goes_on(f"two {number} {codes}", workdir) and right)
    return found


def renames(bench):
    """Returns for each rename and removal whether a run that is killed there goes on."""
    workdir = bench.new("renames")
    _, output = bench.ended(bench.main(workdir, "-c", KILLED, 0, workdir))
    count, found = int(output.rpartition("renames: ")[2]), []
    for number in range(1, count + 1, bench.every):
        workdir = bench.new(f"rename_{number}")
        code, _ = bench.ended(bench.main(workdir, "-c", KILLED, number, workdir))
        found.append(bench.goes_on(f"rename {number} of {count} ({code})", workdir))
    return found


def disk(bench):
    """Returns for each size of a disk whether one message ends a run, which goes on with room."""
    found, place = [], bench.new("disk")
    place.mkdir()
    for size in DISKS:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(place)]
        if subprocess.run(mount, capture_output=True).returncode:
            print("disk: not run, no right to mount a tmpfs", flush=True)
            return found
        try:
            code, output = bench.ended(bench.main(place / "run"))
            quiet = code in (0, 1) and "Traceback" not in output
            subprocess.run(["mount", "-o", "remount,size=100m", str(place)], check=True)
            went_on = bench.goes_on(f"disk of {size} kB ({code})", place / "run")
            found.append(quiet and went_on)
        finally:
            subprocess.run(["umount", str(place)], check=True)
    return found


def power_cut(bench):
    """Returns for each moment whether what a power cut leaves goes on."""
    workdir, file, found = bench.new("power"), bench.folder / "cuts", []
    code, output = bench.ended(bench.main(workdir, "-c", RECORDED, workdir, file))
    assert code == 0, output[-2000:]
    cuts = pickle.loads(file.read_bytes())
    for name, cut in cuts[bench.rng.randrange(min(len(cuts), bench.every)) :: bench.every]:
        left = bench.new("cut")
        left.mkdir()
        power.write(cut, left)
        found.append(bench.goes_on(f"power, {name} of {len(cuts)}", left))
    return found


def commands(bench):
    """Returns for kills of other commands whether their second start has the undisturbed result."""
    student, found = bench.expected / "s01_n0001", []
    file, before = bench.folder / "weights.safetensors", kill.weights(bench.expected)
    leaves = native.leaves(load(bench.expected / "s00_teacher").params)
    arrays = {leaf.name: np.full(leaf.shape, 0.1, np.float32) for _, leaf in leaves}
    safetensors.write(file, {name: of_array(array) for name, array in arrays.items()})
    starts = {
        "sample": lambda out: ("sample", f"--student={student}", "--num=200", f"--out={out}.npy"),
        "evaluate": lambda out: (
            "evaluate",
            f"--student={student}",
            "--num=50",
            f"--out={out}.json",
        ),
        "teachers": lambda out: ("teachers", "safetensors", file, CONFIG, f"--out={out}"),
    }
    for name, flags in starts.items():
        whole = bench.folder / f"{name}_whole"
        began = time.monotonic()
        code, output = bench.ended(command(bench, flags(whole)))
        seconds = time.monotonic() - began
        assert code == 0, output[-2000:]
        for number in range(5):
            out = bench.folder / f"{name}_{number}"
            process = command(bench, flags(out))
            time.sleep(bench.rng.uniform(seconds / 2, seconds))
            process.kill()
            bench.ended(process)
            half = (out / "final").exists() and name == "teachers"
            code, output = bench.ended(command(bench, flags(out)))
            right = half or (code == 0 and result(name, out) == result(name, whole))
            print(f"{name} {number}: {'right' if right else output[-2000:]}", flush=True)
            found.append(right and kill.weights(bench.expected) == before)
    return found


def command(bench, flags):
    return bench.start("-m", f"distill_jax.{flags[0]}", *flags[1:])


def result(name, out):
    """Returns what a command wrote, without times."""
    if name == "sample":
        return out.with_suffix(".npy").read_bytes()
    if name == "teachers":
        return [np.asarray(leaf).tobytes() for leaf in by_name(load(out).params).values()]
    content = json.loads(out.with_suffix(".json").read_text())["rows"]
    return [{key: row[key] for key in row if "seconds" not in key} for row in content]


FAULTS = {
    "two": two,
    "renames": renames,
    "disk": disk,
    "power": power_cut,
    "commands": commands,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("faults", nargs="*", default=[], metavar="FAULT", help=", ".join(FAULTS))
    parser.add_argument("--every", type=int, default=1, help="one of so many renames and cuts")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", default="/tmp/faults")
    options = parser.parse_args()
    folder = pathlib.Path(options.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    bench, rows, began = Bench(folder, options.every, options.seed), [], time.monotonic()
    for name in options.faults or FAULTS:
        found = FAULTS[name](bench)
        rows.append([name, len(found), found.count(False) if found else "not run"])
    print(f"\n{logging.table(('fault', 'times', 'lost'), rows)}")
    print(f"\n{(time.monotonic() - began) / 60:.0f} minutes")
    return any(row[2] not in (0, "not run") for row in rows)


if __name__ == "__main__":
    sys.exit(main())
