"""The training loop: it runs compiled calls, logs their metrics, and saves the state."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.runtime import heartbeat
from distill_jax.training.update import Metrics, TrainState
from distill_jax.typing import Tree

AHEAD = 2  # Calls that the host may be ahead of the device.


class StoppedError(Exception):
    """The user stopped the run; the state after iteration `step` is saved."""

    def __init__(self, step: int):
        super().__init__(f"stopped after iteration {step}")
        self.step = step


class DivergedError(ValueError):
    """A metric or a weight was not finite; `step` is the iteration, from 1."""

    def __init__(self, step: int, values: Mapping[str, float]):
        shown = ", ".join(f"{name} = {value:g}" for name, value in values.items())
        super().__init__(f"iteration {step}: {shown}")
        self.step = step


class Call(NamedTuple):
    """The work of one compiled call.

    Attributes:
      iterations: numbers of the iterations in this call, from 0.
      batches: one batch per update of an iteration. In a call of several iterations, the iterations
        are the second axis of every array.
    """

    iterations: range
    batches: Any


class Cadence(NamedTuple):
    """Iteration counts of a stage: total, logging and saving intervals, iterations per call.

    `per_call` divides `log_every` and `save_every`.
    """

    steps: int
    log_every: int
    save_every: int
    per_call: int = 1

    def iterations(self, done: int) -> Iterator[range]:
        """Yields the range of iterations of each call, starting after `done` iterations.

        Calls end at multiples of per_call and at the last iteration.
        """
        while done < self.steps:
            end = min(done - done % self.per_call + self.per_call, self.steps)
            yield range(done, end)
            done = end


def train(
    iterate: Callable[[TrainState, Call], tuple[TrainState, Metrics]],
    state: TrainState,
    calls: Iterator[Call],
    cadence: Cadence,
    log: Callable[[int, list[dict[str, float]]], None] = lambda step, values: None,
    save: Callable[[int, TrainState], None] = lambda step, state: None,
    stop: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Runs the iterations of `calls`.

    The log also has "input_seconds", the time spent waiting for the batch, per iteration.
    Metrics are fetched one call late, so that logging never waits for the device. The loop is at
    most AHEAD calls ahead of the device: it never waits for the next one, and has few to finish
    before a stop. Before a state is saved, all metrics are fetched and checked to be finite.

    Args:
      iterate: function that runs the iterations of one call; it may donate its state. Its metrics
        are scalars, or arrays with one number per iteration of the call.
      state: state to start from.
      calls: the calls from iteration state.step on, which end where `cadence` says.
      cadence: the intervals of logging and saving.
      log: function that gets the number of the last fetched iteration, and the metrics of every
        iteration since its previous call.
      save: function that is called every save_every iterations, except after the last.
      stop: function that is polled after every call; if it returns true, the state is saved and
        StoppedError is raised.

    Raises:
      DivergedError: when a metric is not finite.
      StoppedError: when `stop` returned true, after the state is saved.
    """
    pending = _Pending(log)
    for call, waited in _timed(calls):
        state, metrics = iterate(state, call)
        seconds = waited / len(call.iterations)
        pending.add(call.iterations, {**metrics, "input_seconds": seconds})
        step, stopping = call.iterations.stop, stop()
        if stopping or (step % cadence.save_every == 0 and step < cadence.steps):
            pending.drain(keep=0)
            save(step, state)
        elif step % cadence.log_every == 0:
            pending.drain(keep=1)
        if stopping:
            raise StoppedError(step)
    pending.drain(keep=0)
    return state


def _timed(calls: Iterator[Call]) -> Iterator[tuple[Call, float]]:
    """Yields each call with the seconds that the loop waited for it."""
    began = time.perf_counter()
    for call in calls:
        yield call, time.perf_counter() - began
        began = time.perf_counter()


class _Pending:
    """Metrics that are still on the device."""

    def __init__(self, log: Callable[[int, list[dict[str, float]]], None]):
        self._log = log
        self._waiting: list[tuple[range, Mapping[str, Any]]] = []

    def add(self, iterations: range, metrics: Mapping[str, Any]) -> None:
        """Stores the metrics of a call's iterations, and waits for the call AHEAD before it."""
        self._waiting.append((range(iterations.start + 1, iterations.stop + 1), metrics))
        for _, earlier in self._waiting[-AHEAD - 1 : -AHEAD]:
            jax.block_until_ready(earlier)

    def drain(self, keep: int) -> None:
        """Fetches, checks and logs the metrics of all calls except the newest `keep`."""
        ready = self._waiting[: len(self._waiting) - keep]
        del self._waiting[: len(ready)]
        fetched = jax.device_get([metrics for _, metrics in ready])
        values = []
        for (steps, _), metrics in zip(ready, fetched, strict=True):
            columns = {name: np.broadcast_to(v, len(steps)) for name, v in metrics.items()}
            for i, step in enumerate(steps):
                values.append({name: float(column[i]) for name, column in columns.items()})
                _check_metrics(step, values[-1])
        if ready:
            heartbeat.beat()
            self._log(ready[-1][0][-1], values)


def _check_metrics(step: int, values: Mapping[str, float]) -> None:
    """Raises DivergedError unless all metrics are finite."""
    if not np.isfinite([*values.values()]).all():
        raise DivergedError(step, values)


def check_finite(step: int, state: TrainState) -> None:
    """Raises DivergedError unless all weights after iteration `step`, and their EMA, are finite.

    Metrics are of the weights before an update, so they do not show what the last one did.
    """
    finite = jax.device_get(_finite({**state.params, "EMA": state.ema}))
    bad = {f"a weight of {name}": math.nan for name, good in finite.items() if not good}
    if bad:
        raise DivergedError(step, bad)


@jax.jit
def _finite(trees: dict[str, Tree]) -> dict[str, jax.Array]:
    """Returns whether all numbers of each tree are finite."""
    return {
        name: jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()
        for name, tree in trees.items()
    }
