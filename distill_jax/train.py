"""The only training loop: phases in, a trained state out."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from distill_jax.typing import Batch, Tree

Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """Exactly what a checkpoint needs for a run to continue bit for bit.

    Attributes:
      step: iterations done, int32.
      params: parameters by role.
      opt: optimizer states by role.
      ema: running mean of the student's parameters.
      key: never changes; iteration n uses fold_in(key, n).
    """

    step: jax.Array
    params: dict[str, Tree]
    opt: dict[str, Tree]
    ema: Tree
    key: jax.Array


class Rates(NamedTuple):
    """The numbers of an optimizer that may differ between stages; all are traced.

    Attributes:
      learning_rate: the largest.
      warmup: iterations of linear rise; 0 for none.
      decay_to: the fraction of learning_rate reached linearly at the last iteration.
      steps: iterations of the stage.
      ema_decay: of the running mean; 0 keeps the parameters themselves.
      weight_decay: decoupled, times the learning rate (Loshchilov & Hutter 2019).
      ema_ramp: the half-life of the running mean is at most this fraction of the iterations done,
        so that a long one does not remember the start; 0 for no such bound.
    """

    learning_rate: Any
    warmup: Any
    decay_to: Any
    steps: Any
    ema_decay: Any
    weight_decay: Any = 0.0
    ema_ramp: Any = 0.0

    def ema_decay_at(self, step: jax.Array) -> jax.Array:
        """The decay of the running mean in iteration `step`, from 0.

        min(ema_decay, 0.5^(1 / (ema_ramp step))); Karras et al. (2022), released code, 0.05.
        """
        ramped = 0.5 ** (1 / jnp.maximum(self.ema_ramp * step, 1e-6))
        return jnp.where(self.ema_ramp > 0, jnp.minimum(self.ema_decay, ramped), self.ema_decay)

    def at(self, step: jax.Array) -> jax.Array:
        """The learning rate of iteration `step`, from 0."""
        rise = jnp.minimum(1.0, (step + 1) / jnp.maximum(self.warmup, 1))
        return self.learning_rate * rise * (1 + (self.decay_to - 1) * step / self.steps)


class StoppedError(Exception):
    """The run was asked to stop; the state after iteration `step` is saved."""

    def __init__(self, step: int):
        super().__init__(f"stopped after iteration {step}")
        self.step = step


class DivergedError(ValueError):
    """A loss or gradient was not finite. `step` is the iteration, from 1."""

    def __init__(self, step: int, values: Mapping[str, float]):
        shown = ", ".join(f"{name} = {value:g}" for name, value in values.items())
        super().__init__(f"iteration {step}: {shown}")
        self.step = step


@functools.cache
def optimizer(b1: float, b2: float, clip_norm: float, eps: float = 1e-8) -> Any:
    """Adam on gradients clipped by global norm, 0 for not, at rate 1; `Rates` has the rest."""
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, optax.scale_by_adam(b1=b1, b2=b2, eps=eps))


@functools.cache
def make_update(
    phases: tuple, index: int, bind: Callable, tx: Any, constrain: Callable, turn: int = 0
) -> Any:
    """A compiled update of one phase.

        (method, rates, state, frozen, batch, repeat=0) -> (state, metrics)

    The method's numbers, the rates, the frozen networks and `repeat`, which update of this phase it
    is, are traced, and equal arguments give the same function, so all rounds of a chain share one
    compilation. The state is donated. Metrics of another role than the student have its name in
    front.

    Args:
      phases: of one iteration of the method.
      index: of this phase; the last update of the last one counts the iteration.
      bind: parameters by role -> the networks that a loss sees.
      tx: the optax transform, without the learning rate.
      constrain: holds a tree to its sharding.
      turn: which program of a phase that has several.
    """
    phase = phases[index]
    prefix = "" if phase.trains == "student" else f"{phase.trains}_"

    def update(
        method: Any,
        rates: Rates,
        state: TrainState,
        frozen: Mapping[str, Tree],
        batch: Batch,
        repeat: int | jax.Array = 0,
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), index)
        if phase.repeats > 1:
            key = jax.random.fold_in(key, repeat)
        trained, opt = state.params[phase.trains], state.opt[phase.trains]

        def loss_of(trained: Tree) -> tuple[jax.Array, Metrics]:
            nets = bind({**frozen, **state.params, phase.trains: trained})
            return phase.loss(method, key, batch, nets, *((turn,) if phase.turns > 1 else ()))

        (loss, metrics), grads = jax.value_and_grad(loss_of, has_aux=True)(trained)
        updates, opt = tx.update(grads, opt, trained)
        rate = rates.at(state.step)
        trained = jax.tree.map(
            lambda p, u: p - rate * (u + rates.weight_decay * p), trained, updates
        )
        ema = state.ema
        if phase.trains == "student":
            ema = optax.incremental_update(trained, ema, 1 - rates.ema_decay_at(state.step))
        state = TrainState(
            state.step + ((index == len(phases) - 1) & (repeat == phase.repeats - 1)),
            {**state.params, phase.trains: trained},
            {**state.opt, phase.trains: opt},
            ema,
            state.key,
        )
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics}
        metrics = {prefix + name: value for name, value in metrics.items()}
        return constrain(state), {**metrics, "learning_rate": rate}

    name = phase.loss.__qualname__.replace(".", "_").lower()
    update.__name__ = f"update_{name}" + (f"_{turn}" if phase.turns > 1 else "")  # In logs.
    return jax.jit(update, donate_argnames="state")


def new_state(key: jax.Array, params: dict[str, Tree], tx: Any) -> TrainState:
    """The state before the first iteration; nothing in it is an array of `params`."""
    params = jax.tree.map(jnp.copy, params)
    opt = {role: tx.init(tree) for role, tree in params.items()}
    ema = jax.tree.map(jnp.copy, params["student"])
    return TrainState(jnp.zeros((), jnp.int32), params, opt, ema, key)


def graft(fresh: Tree, teacher: Tree, new: Iterable[str] = ()) -> Tree:
    """The teacher's parameters in the structure of `fresh`, with fresh ones where named in `new`.

    Args:
      fresh: newly initialised parameters of the student.
      teacher: parameters of the teacher.
      new: names of modules, anywhere on a path, that the teacher may lack.

    Raises:
      ValueError: naming the first leaf that does not fit.
    """
    have = {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(teacher)}
    new = tuple(new)

    def pick(path: tuple, leaf: Any) -> Any:
        name = _name(path)
        if name not in have and any(part in new for part in name.split("/")):
            return leaf
        if name not in have:
            raise ValueError(
                f"the teacher has no parameter {name} {leaf.shape}; if the student is meant to "
                f"start with a new one, name its module in the stage's `new` (now {new})"
            )
        if have[name].shape != leaf.shape:
            raise ValueError(
                f"parameter {name} is {have[name].shape} in the teacher and {leaf.shape} in the "
                "student; teacher and student need the same model settings"
            )
        return have.pop(name)

    grafted = jax.tree_util.tree_map_with_path(pick, fresh)
    for name, leaf in have.items():
        raise ValueError(f"the student has no parameter {name} {leaf.shape}, which the teacher has")
    return grafted


def _name(path: tuple) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


class Cadence(NamedTuple):
    """How many iterations a stage has, and after how many it logs and saves."""

    steps: int
    log_every: int
    save_every: int


def train(
    iterate: Callable[[TrainState, Any], tuple[TrainState, Metrics]],
    state: TrainState,
    batches: Iterator[Any],
    cadence: Cadence,
    log: Callable[[int, list[dict[str, float]]], None],
    save: Callable[[int, TrainState], None],
    stop: Callable[[], bool],
) -> TrainState:
    """Runs iterations from state.step to cadence.steps.

    Beside the metrics of `iterate` stands "input_seconds", the wait for the batch.
    Metrics are fetched one iteration late, so that logging never waits for the device; they are
    all fetched, and found finite, before a state is saved.

    Args:
      iterate: one iteration; it may donate its state.
      state: to start from.
      batches: what the iterations from state.step on are called with.
      cadence: see Cadence.
      log: sees the number of the last iteration fetched and the metrics of those since last time.
      save: called every save_every iterations, not after the last.
      stop: polled every iteration; true saves and raises StoppedError.

    Raises:
      DivergedError: when a loss or a gradient norm is not finite.
      StoppedError: after `stop` and a save.
    """
    pending = _Pending(log)
    for step in range(int(state.step) + 1, cadence.steps + 1):
        began = time.perf_counter()
        batch = next(batches)
        waited = time.perf_counter() - began
        state, metrics = iterate(state, batch)
        pending.add(step, {**metrics, "input_seconds": waited})
        stopping = stop()
        if stopping or (step % cadence.save_every == 0 and step < cadence.steps):
            pending.drain(keep=0)
            save(step, state)
        elif step % cadence.log_every == 0:
            pending.drain(keep=1)
        if stopping:
            raise StoppedError(step)
    pending.drain(keep=0)
    return state


class _Pending:
    """Metrics that are still on the device."""

    def __init__(self, log: Callable[[int, list[dict[str, float]]], None]):
        self._log = log
        self._waiting: list[tuple[int, Metrics]] = []

    def add(self, step: int, metrics: Metrics) -> None:
        """Remembers the metrics of an iteration without waiting for them."""
        self._waiting.append((step, metrics))

    def drain(self, keep: int) -> None:
        """Fetches, checks and logs all but the newest `keep`."""
        ready = self._waiting[: len(self._waiting) - keep]
        del self._waiting[: len(ready)]
        values = []
        for step, metrics in jax.device_get(ready):
            values.append({name: float(value) for name, value in metrics.items()})
            watched = [v for k, v in values[-1].items() if k.endswith(("loss", "grad_norm"))]
            if not np.isfinite(watched).all():
                raise DivergedError(step, values[-1])
        if ready:
            self._log(ready[-1][0], values)
