"""Measures the cache: the encode, and updates of a config's first stage with and without it.

    taskset -c 0 python benchmarks/cache.py --config=configs/shapes_guided.py
    taskset -c 0 python benchmarks/cache.py --config=FILE --updates=0         # batches only

Figures are CPU-seconds of one process, in blocks that take turns, so that neither other programs
nor the clock of the machine change their ratio. The fits and the cache are in --folder, which a
second call reuses; remove its cache/ to measure the encode again.
"""

import argparse
import itertools
import time

import jax
import numpy as np
from etils import epath

from distill_jax.models.build import matmul_precision
from distill_jax.run import lock, pipeline, plan
from distill_jax.run.begin import begin
from distill_jax.run.calls import calls, make_iterate
from distill_jax.runtime.config_file import load_file
from distill_jax.storage.states import States
from distill_jax.training.loop import Cadence


def never():
    return False


def cpu(function, *arguments):
    """Returns the result of a function and its CPU-seconds."""
    began = time.process_time()
    result = jax.block_until_ready(function(*arguments))
    return result, time.process_time() - began


def blocks(functions, rounds):
    """Returns the seconds of every function in every round; the functions take turns."""
    return np.array([[cpu(function)[1] for function in functions] for _ in range(rounds)])


def training(run, updates):
    """Returns a function that trains the first stage for some updates more."""
    stage = run.stages[0]
    state, frozen = begin(run, stage, States(run.workdir / "unused"))
    cadence = Cadence(10**6, 10**6, 10**6, run.config.updates_per_call)
    made, iterate = calls(run, stage, cadence, 0), make_iterate(run, stage, frozen)
    kept = {"state": state}

    def train():
        for call in itertools.islice(made, -(-updates // run.config.updates_per_call)):
            kept["state"], metrics = iterate(kept["state"], call)
        return metrics

    return train


def drawing(run, count):
    batches = run.dataset.batches(0, 0, run.config.batch_size)
    return lambda: [next(batches).index for _ in range(count)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", default="configs/shapes_guided.py")
    parser.add_argument("--folder", default="/tmp/cache")
    parser.add_argument("--updates", type=int, default=40, help="of a block")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    run = plan.make(load_file(options.config).get_config(), epath.Path(options.folder))
    with lock.hold(run.workdir) as held, matmul_precision(run.config.matmul_precision):
        pipeline.finish_fits(run, never, held)
        (cached, filled), seconds = cpu(pipeline.fill_cache, run, never, held)
        for name, part in run.cache.shards.items():
            there = sum(path.stat().length for path in part.files)
            print(f"{name}: {part.count:,} records, {there / part.count:,.0f} bytes each on disk")
        if filled:
            print(f"encoded in {seconds:.1f} CPU-seconds")
        for fit in filter(None, (run.codec, run.conditioner)):
            kept = getattr(fit, "codec" if fit is run.codec else "conditioner").params
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(kept))
            print(f"{fit.directory.name}: {size:,} bytes of parameters that training does not hold")
        measures = {"batches": (drawing, 20)}
        if options.updates:
            measures["updates"] = (training, options.updates)
        for name, (make, count) in measures.items():
            pair = [make(run, count), make(cached, count)]
            blocks(pair, 1)  # Compiles.
            found = blocks(pair, options.rounds) / count
            without, with_ = np.median(found, axis=0)
            ratios = found[:, 0] / found[:, 1]
            print(
                f"{name}: {1e3 * without:.2f} ms without, {1e3 * with_:.2f} ms with the cache; "
                f"ratio {np.median(ratios):.3f} ({ratios.min():.3f} to {ratios.max():.3f})"
            )


if __name__ == "__main__":
    main()
