"""The monitor of a stage: it measures the EMA in training, and keeps the best one if asked to."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.data.prompts import as_array, captions_of, in_turn
from distill_jax.diffusion.pixels import normalise
from distill_jax.evaluation.base import Row
from distill_jax.evaluation.definitions import distance
from distill_jax.evaluation.protocols import prompts_for
from distill_jax.models.adapters import Adapted
from distill_jax.run import measurements
from distill_jax.run.finish import manifest
from distill_jax.run.lock import Lock
from distill_jax.run.plan import Run
from distill_jax.run.stages import Stage
from distill_jax.runtime import distributed, heartbeat, logging
from distill_jax.runtime.sharding import Layout
from distill_jax.sampling.batched import PIXELS, Draw
from distill_jax.sampling.codecs import PIXELS as NO_CODEC
from distill_jax.sampling.student import Student
from distill_jax.storage.states import States
from distill_jax.training.loop import Call, DivergedError, check_finite
from distill_jax.training.update import Metrics, TrainState
from distill_jax.typing import Tree

SEED = (
    1  # Of the noise; the report draws from seed 0, so it does not repeat the choice of the best.
)
RATIO, PATIENCE = 2.0, 2  # A distance diverges when its last PATIENCE values are > RATIO its best.
# Measures to maximise, and those that choose no weights, because real images are between extremes.
LARGER = ("accuracy", "precision", "recall", "density", "coverage", "diversity")
NEITHER = ("chroma", "contrast")


class Best(NamedTuple):
    """The best weights so far: their EMA, iteration (int32), and metric (float32)."""

    params: Tree
    step: jax.Array
    value: jax.Array


class Monitor:
    """Measures the EMA of a stage's student every config.evaluate.every iterations.

    Samples come from the stage's own sampler and a seed of their own, at the w that measurements
    names. All processes draw, and the first one measures. A line of quality.jsonl, in the
    stage's directory, has the measures and their protocol.

    Args:
      run: the run.
      stage: the stage.
      landed: map from its trained weights, or adapters, to the network's; see begin.landing.
      log: the log of the stage, which has the lines of quality.jsonl up to its start.
      lock: the lock of the workdir.

    Attributes:
      best: the best weights so far; None without config.evaluate.keep_best.
    """

    def __init__(
        self,
        run: Run,
        stage: Stage,
        landed: Callable[[Tree], Tree | Adapted],
        log: logging.StageLog,
        lock: Lock,
    ):
        self._run, self._stage, self._log, self._lock = run, stage, log, lock
        self._evaluate = run.config.evaluate
        self.best: Best | None = None
        self._on = bool(measurements.measured(self._evaluate, [stage]))
        if not self._on:
            return
        self._landed = landed
        codec = run.codec.codec if run.codec else NO_CODEC
        described = manifest(run, stage), stage.roles.student
        text = run.conditioner.conditioner if run.conditioner else None
        self._student = Student(*described, None, run.layout, codec=codec, text=text)
        self._w = measurements.strength(self._evaluate, stage)
        few = self._evaluate.few
        prompts = prompts_for(run.config.data.to_dict(), few)
        draw = Draw(few, seed=SEED, prompts=prompts).with_repeats(self._student)
        self._num, self._draw, self._earlier = draw.num, _even(draw, self._student.shape), []
        if distributed.first():
            lines = [line for line in log.measured if line.get("protocol") == self.protocol]
            found = [(line["step"], line.get(run.evaluator.name)) for line in lines]
            self._earlier = [item for item in found if isinstance(item[1], float)]

    @property
    def protocol(self) -> str:
        """The protocol of the distance in one line; only the first process can tell it."""
        evaluator, student = self._run.evaluator, self._student
        w = "" if self._w is None else f", w {self._w:g}"
        told = distance(evaluator.name, self._evaluate.few, evaluator.definition)
        return f"{told}; EMA, {student.trained.sampler}{w}, seed {SEED}"

    @property
    def record(self) -> dict[str, Any] | None:
        """The iteration, metric, value and protocol of the best weights, for the manifest."""
        if self.best is None or not distributed.first():
            return None
        return {
            "iteration": int(self.best.step),
            "metric": metric(self._run),
            "value": float(self.best.value),
            "protocol": self.protocol,
        }

    def restore(self, states: States, state: TrainState) -> None:
        """Restores the best weights that were saved with a state."""
        if self._on and self._evaluate.keep_best and int(state.step):
            like = jax.eval_shape(lambda: Best(state.ema, jnp.int32(0), jnp.float32(0)))
            self.best = states.part("best", int(state.step), self._run.layout.abstract(like))

    def after(self, iterate: Callable) -> Callable[[TrainState, Call], tuple[TrainState, Metrics]]:
        """Returns `iterate` that also measures, after the iterations when that is due."""
        if not self._on:
            return iterate

        def measuring(state: TrainState, call: Call) -> tuple[TrainState, Metrics]:
            state, metrics = iterate(state, call)
            step = call.iterations.stop
            if step % self._evaluate.every == 0 or step == self._stage.spec.steps:
                check_finite(step, state)  # It also waits for the update.
                with self._log.aside():
                    self._measure(step, state.ema)
            return state, metrics

        return measuring

    def _measure(self, step: int, ema: Tree) -> None:
        """Draws samples, measures them, writes the line, and keeps the EMA if it is the best."""
        began, cpu, row = time.perf_counter(), time.process_time(), {}
        student = dataclasses.replace(self._student, params=self._landed(ema))
        x = self._draw(student, self._w)[0][: self._num]
        if not np.isfinite(x).all():
            raise DivergedError(step, {"a sample of the EMA": math.nan})
        if distributed.first():
            asked = self._draw.asked(student)
            asked = None if asked is None else asked[: self._num]
            row = self._run.evaluator.measure(x, asked, None, self._evaluate.few)
            seconds = {"seconds": time.perf_counter() - began}
            self._write(step, row, {**seconds, "cpu_seconds": time.process_time() - cpu})
        heartbeat.beat()
        if self._evaluate.keep_best:
            self._keep(step, ema, row)

    def _keep(self, step: int, ema: Tree, row: Row) -> None:
        """Copies the EMA if its metric is better than that of the best before."""
        value = np.float32(row[metric(self._run)] if distributed.first() else 0)
        bits = distributed.broadcast_from_first(int(value.view(np.int32)))
        value = np.int32(bits).view(np.float32)
        sign = 1 if self._evaluate.keep_best in LARGER else -1
        better = self.best is None or sign * value > sign * float(self.best.value)
        if better and np.isfinite(value):
            numbers = self._run.layout.replicate((np.int32(step), value))
            self.best = Best(_copy(self._run.layout, ema), *numbers)

    def _write(self, step: int, row: Row, spent: dict[str, float]) -> None:
        """Writes and says the measures of an iteration, with a warning if they diverge."""
        name, before = self._run.evaluator.name, [value for _, value in self._earlier]
        self._earlier.append((step, row[name]))
        warning = {}
        if diverges([*before, row[name]]) and not diverges(before):
            warning["warning"] = self._advice(name)
        facts = {"w": self._w, "num_samples": self._evaluate.few}
        line = {"step": step, **row, **facts, **spent, "protocol": self.protocol, **warning}
        self._lock.check_here()
        self._log.measure(step, row, line)
        at, best = min(self._earlier, key=lambda item: item[1])
        others = "".join(f", {key} {value:.3g}" for key, value in row.items() if key != name)
        shown = f"{name} {row[name]:.4g} after iteration {step} (best {best:.4g} after {at})"
        logging.say(f"{self._stage.name}: {shown}{others}, in {spent['seconds']:.1f} s")
        if warning:
            logging.say(f"warning: {self._stage.name}: {warning['warning']}")

    def _advice(self, name: str) -> str:
        """Returns what diverges, and what to do about it."""
        at, best = min(self._earlier, key=lambda item: item[1])
        last = " and ".join(
            f"{value:.4g} after {step}" for step, value in self._earlier[-PATIENCE:]
        )
        kept = "" if self._evaluate.keep_best else ", or config.evaluate.keep_best=distance"
        return (
            f"{name} diverges: {last}, more than {RATIO:g} times the best, {best:.4g} after {at}; "
            f"the run goes on. Take a smaller config.stages.{self._stage.name}.learning_rate (now "
            f"{self._stage.spec.learning_rate:g}), fewer steps{kept}"
        )


def metric(run: Run) -> str:
    """Returns the name of the measure of config.evaluate.keep_best; only the first process can."""
    name = run.config.evaluate.keep_best
    return run.evaluator.name if name == "distance" else name


def diverges(distances: Sequence[float]) -> bool:
    """Returns whether the last PATIENCE distances are each more than RATIO times the smallest."""
    last = distances[-PATIENCE:]
    return len(last) == PATIENCE and min(last) > RATIO * min(distances)


def check_measures(run: Run) -> None:
    """Measures real test images as samples will be, and says the result.

    Raises:
      ValueError: if config.evaluate.keep_best is none of the measures.
    """
    if not distributed.first():
        return
    source = run.codec.source if run.codec else run.dataset
    few, name = run.config.evaluate.few, metric(run)
    real = source.images("test", few)
    asked = as_array(captions_of(source, "test", few)) if run.conditioner else real.label
    row = run.evaluator.measure(normalise(real.x), asked, None)
    known = [key for key in row if key not in NEITHER]
    if name and name not in known:
        raise ValueError(
            f"config.evaluate.keep_best is {name!r}; expected '', 'distance' or one of the "
            f"measures in training: {', '.join(known)}"
        )
    shown = ", ".join(f"{key} {value:.4g}" for key, value in row.items())
    logging.say(f"measuring in training: {len(real.x):,} real test images have {shown}")


def _even(draw: Draw, shape: tuple[int, ...]) -> Draw:
    """Returns a sampling of at least as many images in batches of one size, for one program."""
    limit = min(draw.batch, max(1, PIXELS // math.prod(shape[:2])))
    parts = -(-draw.num // limit)
    size = -(-draw.num // parts)
    label, texts = draw.label, tuple(in_turn(draw.prompts, parts * size))
    label = None if label is None else np.resize(label, parts * size)
    return dataclasses.replace(draw, num=parts * size, batch=size, label=label, prompts=texts)


@functools.partial(jax.jit, static_argnums=0)
def _copy(layout: Layout, tree: Tree) -> Tree:
    """Returns a copy of parameters, which the next update overwrites."""
    return layout.constrain(jax.tree.map(jnp.copy, tree))
