"""Kills the digits chain at random moments and compares what it ends with.

    python benchmarks/kill.py --kills=20                # SIGKILL; 20 minutes or more
    python benchmarks/kill.py --kills=5 --size=smoke

An undisturbed run first; then the same command is started again and again, each time killed after a
random while, until it ends by itself; then a new workdir, until the kills are used up. Every final
weight must be bitwise that of the undisturbed run, and no finished stage may be lost.
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


def disturb(workdir, config, kills, longest, rng):
    """Runs the command to its end, killing it up to `kills` times: kills and lost stages."""
    done, count, lost = set(), 0, 0
    while True:
        process = start(workdir, config)
        if count == kills:
            assert process.wait() == 0
            return count, lost
        pause = rng.uniform(0, longest)
        try:
            assert process.wait(pause) == 0
            return count, lost
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        count += 1
        lost += len(done - finished(workdir))
        done = finished(workdir)
        print(f"| {workdir.name} | {pause:.1f} | {len(done)} | {newest(workdir)} |", flush=True)


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
    expected = weights(folder / "undisturbed")
    print(f"undisturbed: {whole:.0f} s", flush=True)
    print("| run | killed after s | finished stages | where |\n| - | - | - | - |")
    kills = lost = different = runs = 0
    while kills < options.kills:
        runs += 1
        workdir = folder / f"killed_{runs}"
        more, gone = disturb(workdir, config, options.kills - kills, 0.3 * whole, rng)
        kills, lost = kills + more, lost + gone
        got = weights(workdir)
        different += sum(expected[key] != got.get(key) for key in expected)
    print(
        f"{kills} kills in {runs} runs: {lost} finished stages lost, {different} of "
        f"{runs * len(expected)} final parameter arrays differ from the undisturbed run's"
    )
    sys.exit(bool(lost or different))


if __name__ == "__main__":
    main()
