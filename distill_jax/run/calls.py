"""The compiled calls of a stage: their iterations and batches, and the function that runs them."""

import functools
import itertools
from collections.abc import Callable, Generator, Mapping
from typing import Any

import jax
import numpy as np

from distill_jax.data.base import with_labels_in_range
from distill_jax.run.plan import Run
from distill_jax.run.stages import Stage
from distill_jax.runtime.sharding import Layout
from distill_jax.training.loop import Cadence, Call
from distill_jax.training.update import TrainState, all_updates, iteration, make_iterations
from distill_jax.typing import Batch, Tree


def calls(run: Run, stage: Stage, cadence: Cadence, done: int) -> Generator[Call, None, None]:
    """Yields the calls after `done` iterations, with batches on the devices.

    Batches depend only on seed, stage and iteration.
    """
    layout, dataset = run.layout, run.dataset
    seed, first = run.config.seed * 1000 + stage.index, done * stage.updates
    null = layout.replicate(dict(dataset.null))
    if stage.method.data_free:
        dataset = dataset.without_images()
    batches = dataset.batches(seed, first, stage.batch_size, layout.part)
    drawn = with_labels_in_range(batches, dataset.spec)
    for iterations in cadence.iterations(done):
        rows = [list(itertools.islice(drawn, stage.updates)) for _ in iterations]
        if cadence.per_call > 1:
            rows = [jax.tree.map(lambda *x: np.stack(x, axis=1), *rows)]
        parts = map(layout.shard_batch, rows[0])
        yield Call(iterations, tuple(Batch(i, x, cond, null) for i, x, cond in parts))


def make_iterate(
    run: Run, stage: Stage, frozen: Mapping[str, Tree]
) -> Callable[[TrainState, Call], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the function that runs a call: the updates of every phase, each on its own batch."""
    phases, layout = stage.method.phases, run.layout
    made_of = phases, stage.roles, stage.tx, layout, run.config.microbatches
    method, rates = _replicated(layout, (stage.method, stage.rates))
    if run.config.updates_per_call > 1:
        several = make_iterations(*made_of)
        return lambda state, call: several(method, rates, state, frozen, call.batches)
    updates = all_updates(*made_of)

    def update(variants: list, turn: int, state: TrainState, *given: Any) -> tuple:
        return variants[turn](method, rates, state, frozen, *given)

    def iterate(state: TrainState, call: Call) -> tuple[TrainState, dict[str, jax.Array]]:
        return iteration(update, phases, updates, call.iterations.start, state, call.batches)

    return iterate


@functools.partial(jax.jit, static_argnums=0)
def _replicated(layout: Layout, tree: Tree) -> Tree:
    """Returns the tree, replicated on every device of every process."""
    return jax.lax.with_sharding_constraint(tree, layout.replicated)
