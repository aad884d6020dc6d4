"""Updates: gradients of a phase's loss, an optimizer and a running mean, compiled."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from distill_jax.diffusion.pixels import normalise
from distill_jax.runtime.sharding import Layout
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


@functools.cache
def optimizer(b1: float, b2: float, clip_norm: float, eps: float = 1e-8) -> Any:
    """Adam on gradients clipped by global norm, 0 for not, at rate 1; `Rates` has the rest."""
    clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    return optax.chain(clip, optax.scale_by_adam(b1=b1, b2=b2, eps=eps))


@functools.lru_cache(maxsize=64)
def make_update(
    phases: tuple,
    index: int,
    roles: Callable,
    tx: Any,
    layout: Layout | None = None,
    turn: int = 0,
    microbatches: int = 1,
) -> Any:
    """A compiled update of one phase.

        (method, rates, state, frozen, batch, repeat=0) -> (state, metrics)

    The method's numbers, the rates, the frozen networks and `repeat`, which update of this phase it
    is, are traced, and equal arguments give the same function, so all rounds of a chain share one
    compilation. The state is donated. Metrics of another role than the student have its name in
    front. Images of the batch may be bytes: those are what travels to the device.

    Args:
      phases: of one iteration of the method.
      index: of this phase; the last update of the last one counts the iteration.
      roles: parameters by role -> the networks that a loss sees.
      tx: the optax transform, without the learning rate.
      layout: holds the state to its sharding; None leaves it as it is.
      turn: which program of a phase that has several.
      microbatches: parts of the batch whose gradients come one after the other; see accumulated.
    """
    phase, constrain = phases[index], (lambda tree: tree) if layout is None else layout.constrain
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
        if phase.updates_per_iteration > 1:
            key = jax.random.fold_in(key, repeat)
        trained, opt = state.params[phase.trains], state.opt[phase.trains]

        def loss_of(trained: Tree, key: jax.Array, batch: Batch) -> tuple[jax.Array, Metrics]:
            if batch.x is not None:
                batch = batch._replace(x=normalise(batch.x))
            nets = roles({**frozen, **state.params, phase.trains: trained})
            return phase.loss(method, key, batch, nets, *((turn,) if phase.variants > 1 else ()))

        gradient = jax.value_and_grad(loss_of, has_aux=True)
        if microbatches > 1:
            gradient = accumulated(gradient, microbatches, constrain)
        (loss, metrics), grads = gradient(trained, key, batch)
        updates, opt = tx.update(grads, opt, trained)
        rate = rates.at(state.step)
        trained = jax.tree.map(
            lambda p, u: p - rate * (u + rates.weight_decay * p), trained, updates
        )
        ema = state.ema
        if phase.trains == "student":
            ema = optax.incremental_update(trained, ema, 1 - rates.ema_decay_at(state.step))
        state = TrainState(
            state.step + ((index == len(phases) - 1) & (repeat == phase.updates_per_iteration - 1)),
            {**state.params, phase.trains: trained},
            {**state.opt, phase.trains: opt},
            ema,
            state.key,
        )
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics}
        metrics = {prefix + name: value for name, value in metrics.items()}
        return constrain(state), {**metrics, "learning_rate": rate}

    name = phase.loss.__qualname__.replace(".", "_").lower()
    update.__name__ = f"update_{name}" + (f"_{turn}" if phase.variants > 1 else "")  # In logs.
    return jax.jit(update, donate_argnames="state")


@functools.lru_cache(maxsize=16)
def make_iterations(
    phases: tuple,
    roles: Callable,
    tx: Any,
    layout: Layout | None = None,
    microbatches: int = 1,
) -> Any:
    """Several iterations in one compiled call, for networks whose update is shorter than a call.

        (method, rates, state, frozen, batches) -> (state, metrics)

    There is a batch for each update of an iteration, whose numbers, images and conditions
    have the iterations as their second axis; the null conditions are common to all. Metrics have
    one number for each iteration. Arguments are those of make_update, and so are the numbers.
    """
    updates = all_updates(phases, roles, tx, layout, microbatches)

    def iterations(
        method: Any,
        rates: Rates,
        state: TrainState,
        frozen: Mapping[str, Tree],
        batches: tuple[Batch, ...],
    ) -> tuple[TrainState, Metrics]:
        def call(variants: list, turn: jax.Array, state: TrainState, *given: Any) -> tuple:
            return jax.lax.switch(turn, variants, method, rates, state, frozen, *given)

        def one(state: TrainState, rows: list) -> tuple[TrainState, Metrics]:
            left = [Batch(i, x, cond, batches[0].null) for i, x, cond in rows]
            return iteration(call, phases, updates, state.step, state, left)

        rows = jax.tree.map(lambda x: x.swapaxes(0, 1), [batch[:3] for batch in batches])
        return jax.lax.scan(one, state, rows)

    return jax.jit(iterations, donate_argnames="state")


def all_updates(
    phases: tuple, roles: Callable, tx: Any, layout: Layout | None, microbatches: int
) -> list[list]:
    """The compiled updates of an iteration by phase and turn; see make_update."""
    return [
        [
            make_update(phases, i, roles, tx, layout, turn, microbatches)
            for turn in range(phase.variants)
        ]
        for i, phase in enumerate(phases)
    ]


def iteration(
    call: Callable,
    phases: tuple,
    updates: list[list],
    step: jax.Array | int,
    state: TrainState,
    batches: Sequence[Batch],
) -> tuple[TrainState, Metrics]:
    """One iteration: the updates of every phase in order, each with its batch.

    Args:
      call: (updates of a phase, which of them, state, batch, repeat) -> (state, metrics).
      phases: of the iteration.
      updates: from all_updates.
      step: number of the iteration, from 0, which decides whose turn it is.
      state: before it.
      batches: one for each update.
    """
    metrics, left = {}, iter(batches)
    for phase, variants in zip(phases, updates, strict=True):
        for repeat in range(phase.updates_per_iteration):
            state, new = call(variants, step % phase.variants, state, next(left), repeat)
            metrics.update(new)
    return state, metrics


def new_state(key: jax.Array, params: dict[str, Tree], tx: Any) -> TrainState:
    """The state before the first iteration; nothing in it is an array of `params`."""
    params = jax.tree.map(jnp.copy, params)
    opt = {role: tx.init(tree) for role, tree in params.items()}
    ema = jax.tree.map(jnp.copy, params["student"])
    return TrainState(jnp.zeros((), jnp.int32), params, opt, ema, key)


def accumulated(gradient: Callable, count: int, constrain: Callable) -> Callable:
    """The function (params, key, batch) -> tree, as its mean over `count` parts of the batch.

    The parts come one after the other, so that the activations of one alone are in memory; the
    devices sum their gradients in each. Part i has rows i, i + count, ..., so that each device
    keeps its own, and the key fold_in(key, i). A loss that is a mean over examples, as
    every one here is, has the same gradient in parts; one that compares the examples of a batch
    compares those of a part.

    Args:
      gradient: what is averaged; everything it returns is.
      count: of parts; it divides the rows that each device has.
      constrain: holds the sums to the sharding of the parameters.
    """

    def part(rows: jax.Array) -> jax.Array:
        return rows.reshape(-1, count, *rows.shape[1:]).swapaxes(0, 1)

    def mean(params: Tree, key: jax.Array, batch: Batch) -> Tree:
        def add(total: Tree, item: tuple[jax.Array, Batch]) -> tuple[Tree, None]:
            i, rows = item
            new = gradient(params, jax.random.fold_in(key, i), rows._replace(null=batch.null))
            return constrain(jax.tree.map(lambda t, n: t + n / count, total, new)), None

        rows = jax.tree.map(part, batch._replace(null={}))
        parts = jnp.arange(count), rows
        first = jax.tree.map(lambda rows: rows[0], rows)._replace(null=batch.null)
        shapes = jax.eval_shape(gradient, params, key, first)
        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return jax.lax.scan(add, constrain(zero), parts)[0]

    return mean
