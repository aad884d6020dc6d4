"""Kills the digits chain at random moments and compares what it ends with.

    python benchmarks/kill.py --kills=20              # SIGKILL; about an hour, on the whole chain
    python benchmarks/kill.py --kills=5 --size=smoke

An undisturbed run first; then the same command is started again and again, each time killed after a
random while, until the kills are used up and it may finish. Every final weight must be bitwise the
same, and no finished stage may be lost.
"""

import argparse
import pathlib
import random
import shutil
import subprocess
import sys
import time

import jax
import numpy as np

import distill_jax

ROOT = pathlib.Path(__file__).parent.parent


def start(workdir, config):
    command = [sys.executable, "-m", "distill_jax.main", f"--config={config}"]
    with open(workdir.parent / f"{workdir.name}.log", "a") as log:
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"], cwd=ROOT, stdout=log, stderr=log
        )


def finished(workdir):
    return {path.parts[-3] for path in workdir.glob("s*/final/manifest.json")}


def newest(workdir):
    """Where a run is: its last stage, and the newest state of it."""
    stages = sorted(path.name for path in workdir.glob("s[0-9]*"))
    if not stages:
        return "before the first stage"
    states = sorted(path.name for path in (workdir / stages[-1] / "states").glob("*"))
    return f"{stages[-1]}, states {', '.join(states) or 'none'}"


def weights(workdir):
    found = {}
    for stage in sorted(finished(workdir)):
        params = distill_jax.load(workdir / stage).params
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            found[stage, jax.tree_util.keystr(path)] = np.asarray(leaf).tobytes()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--size", default="full", help="full or smoke")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", default="/tmp/kill")
    options = parser.parse_args()
    folder = pathlib.Path(options.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = f"configs/digits_guided.py:{options.size}"
    rng = random.Random(options.seed)

    began = time.monotonic()
    assert start(folder / "undisturbed", config).wait() == 0
    whole = time.monotonic() - began
    print(f"undisturbed: {whole:.0f} s", flush=True)

    workdir, lost, done = folder / "killed", 0, set()
    print(
        "| kill | after s | finished stages | where |\n| ---- | ------- | --------------- | ----- |"
    )
    for number in range(1, options.kills + 1):
        process = start(workdir, config)
        # Long enough to get somewhere on average: all kills together take about two whole runs.
        pause = rng.uniform(0, 4 * whole / options.kills + 10)
        time.sleep(pause)
        process.kill()
        process.wait()
        lost += len(done - finished(workdir))
        done = finished(workdir)
        print(f"| {number} | {pause:.1f} | {len(done)} | {newest(workdir)} |", flush=True)
    assert start(workdir, config).wait() == 0
    a, b = weights(folder / "undisturbed"), weights(workdir)
    different = sum(a[key] != b.get(key) for key in a)
    print(
        f"{options.kills} kills: {lost} finished stages lost, {different} of {len(a)} final "
        "parameter arrays differ from the undisturbed run's"
    )
    sys.exit(bool(lost or different))


if __name__ == "__main__":
    main()
