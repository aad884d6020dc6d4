"""Measures the overhead of the training loop: milliseconds per iteration, as ratios within one run.

python benchmarks/updates.py                                          # the digits network
python benchmarks/updates.py --width=32 --blocks=1 --batch_size=16    # as small as it gets
"""

import argparse
import itertools
import json
import pathlib
import statistics
import tempfile
import time

import jax
from ml_collections import ConfigDict

from distill_jax.run import pipeline, plan
from distill_jax.run.calls import calls
from distill_jax.runtime.config_file import load_file
from distill_jax.training.loop import Cadence
from distill_jax.training.update import make_update, new_state

ROOT = pathlib.Path(__file__).parent.parent


def make_config(args):
    path = ROOT / "configs" / "digits_guided.py"
    config = load_file(path).get_config()
    first = next(iter(config.stages))
    config.stages = ConfigDict({first: config.stages[first]})
    config.model.update(width=args.width, blocks=args.blocks)
    config.batch_size, config.log_every = args.batch_size, args.segment
    config.save_every = config.stages[first].steps = args.segment * (args.segments + 1)
    return config


class Bare:
    """The update on one ready batch, in a loop that does nothing else."""

    def __init__(self, config):
        run = plan.make(config, "unused")
        stage, layout = run.stages[0], run.layout
        method, phases = stage.method, stage.method.phases
        update = make_update(phases, 0, stage.roles, stage.tx, layout)
        roles = stage.roles.initial(jax.random.key(0), stage.trained.inputs, None)
        self._state = new_state(jax.random.key(1), roles, stage.tx)
        batch = next(calls(run, stage, Cadence(1, 1, 1), 0)).batches[0]
        self._call = lambda state: update(method, stage.rates, state, {}, batch)
        self.ms(1)  # Compiles.

    def ms(self, count):
        """Returns the mean milliseconds of `count` updates."""
        began = time.perf_counter()
        for _ in range(count):
            self._state, _ = self._call(self._state)
        jax.block_until_ready(self._state)
        return (time.perf_counter() - began) / count * 1e3


def loop(config, per_call):
    """Returns log lines of a real run, without the first, in which programs are compiled."""
    config = config.copy_and_resolve_references()
    config.updates_per_call = per_call
    with tempfile.TemporaryDirectory() as workdir:
        run = plan.make(config, workdir)
        pipeline.run(run, stop=lambda: False)
        path = pathlib.Path(run.stages[0].directory) / "scalars.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()[1:]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--segment", type=int, default=50, help="iterations that are timed at once")
    parser.add_argument("--segments", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    config = make_config(args)
    bare, alone, loops = Bare(config), [], {1: [], 10: []}
    for _, per_call in itertools.product(range(args.rounds), loops):
        alone += [bare.ms(args.segment) for _ in range(args.segments)]
        loops[per_call] += loop(config, per_call)
    least = statistics.median(alone)
    device = jax.devices()[0].device_kind
    print(f"\n{device}, width {args.width}, {args.blocks} blocks, batches of {args.batch_size}\n")
    print("| iterations | ms each, median | / bare update | ms each waiting for input |")
    print("| --- | ---: | ---: | ---: |")
    print(f"| bare update | {least:.3f} | 1.00 | 0 |")
    for per_call, lines in loops.items():
        ms = statistics.median(1e3 / line["updates_per_second"] for line in lines)
        waited = statistics.median(1e3 * line["input_seconds"] for line in lines)
        name = f"of a run, updates_per_call = {per_call}"
        print(f"| {name} | {ms:.3f} | {ms / least:.2f} | {waited:.3f} |")


if __name__ == "__main__":
    main()
