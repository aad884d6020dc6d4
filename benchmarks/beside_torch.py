"""Times a UNet and a transformer beside PyTorch, on one core and in turn: its seconds over ours.

    python benchmarks/beside_torch.py                                          # DDPM++, in float32
    python benchmarks/beside_torch.py --network=dit --before=DIR      # and another checkout of ours
    python benchmarks/beside_torch.py --network=layers                # to find what is slow

Processes on the same core have the same network and weights: DDPM++ (song_unet) by import from
EDM's names, or a DiT. The outputs of every workload are compared, and then it runs in turn for up
to --rounds rounds. A ratio is the median of those of the rounds, in processor time, which other
programs change little. PyTorch is eager, with channels-last memory, fused attention and optimizer.
"""

import argparse
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1"}  # XLA counts the allowed cores.


def serve(library, network, size, batch):
    """Runs the workloads that the parent names, and answers with their processor seconds."""
    module = importlib.import_module(f"benchmarks.beside_{library}")
    functions = module.workloads(network, size, batch)
    print(json.dumps(list(functions)), flush=True)
    for line in sys.stdin:
        name, path = json.loads(line)
        began = time.process_time()
        output = functions[name]()
        took = time.process_time() - began
        if path and output is not None:
            np.save(path, output)
        print(json.dumps([took, output is not None]), flush=True)


class Side:
    """A process with the workloads of one library."""

    def __init__(self, library, checkout, args):
        self._library = library
        command = [sys.executable, str(ROOT / "benchmarks" / "beside_torch.py")]
        command += [f"--{name}={getattr(args, name)}" for name in ("network", "size", "batch")]
        # benchmarks/ has no __init__.py: a module that the checkout lacks is found here.
        paths = [str(checkout), str(ROOT), os.environ.get("PYTHONPATH")]
        self._process = subprocess.Popen(
            ["taskset", "-c", str(args.core), *command, f"--serve={library}"],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def answer(self):
        """Returns the next answer: the names of the workloads, then one for every `begin`."""
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self._library} ended; its message is above")
        return json.loads(line)

    def begin(self, name, path=None):
        """Asks for a call of a workload, and for its output at that path."""
        print(json.dumps([name, path]), file=self._process.stdin, flush=True)

    def time(self, name):
        """Returns the processor seconds of a call of a workload."""
        self.begin(name)
        return self.answer()[0]

    def close(self):
        self._process.stdin.close()
        self._process.wait()


def largest_difference(name, sides):
    """Runs a workload on every side at once, which compiles it, and compares their outputs.

    Returns the largest difference from PyTorch over its largest value, in words; "-" of an update.
    """
    with tempfile.TemporaryDirectory() as directory:
        paths = [f"{directory}/{i}.npy" for i in range(len(sides))]
        for side, path in zip(sides, paths, strict=True):
            side.begin(name, path)
        if not all([side.answer()[1] for side in sides]):
            return "-"
        *ours, theirs = map(np.load, paths)
    return f"{max(np.abs(each - theirs).max() for each in ours) / np.abs(theirs).max():.0e}"


def row(name, sides, rounds, seconds):
    """Returns the cells of a workload's row; rounds end early after so many processor seconds."""
    error, took = largest_difference(name, sides), []
    while len(took) < rounds and np.sum(took) < seconds:
        took.append([side.time(name) for side in sides])
    took = np.array(took)
    cells = [name, *(f"{each:.3g}" for each in np.median(took, axis=0))]
    for ratios in (took[:, -1:] / took[:, :-1]).T:
        cells.append(f"{np.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return [*cells, error]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--network", choices=("ddpmpp", "dit", "layers"), default="ddpmpp")
    parser.add_argument("--size", choices=("full", "smoke"), default="full")
    parser.add_argument("--batch", type=int, default=4, help="images")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="after which no round begins")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--only", default="", help="words in the names of workloads, by commas")
    parser.add_argument("--before", help="another checkout of this project, to compare with")
    parser.add_argument("--serve", choices=("jax", "pytorch"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.network, args.size, args.batch)
        return
    checkouts = {"JAX": ROOT, **({"before": args.before} if args.before else {})}
    sides = [Side("jax", checkout, args) for checkout in checkouts.values()]
    sides.append(Side("pytorch", ROOT, args))
    names = [side.answer() for side in sides][-1]
    titles = ["workload", *(f"{name}, s" for name in (*checkouts, "PyTorch"))]
    titles += [*(f"ratio, {name}" for name in checkouts), "largest difference"]
    print(f"| {' | '.join(titles)} |\n|{' - |' * len(titles)}", flush=True)
    for name in names:
        if any(word in name for word in args.only.split(",")):
            print(f"| {' | '.join(row(name, sides, args.rounds, args.seconds))} |", flush=True)
    for side in sides:
        side.close()


if __name__ == "__main__":
    main()
