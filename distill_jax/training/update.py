"""Compiled updates: the gradient of a phase's loss, the optimizer step, and the EMA."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from distill_jax.diffusion.pixels import normalise
from distill_jax.runtime.options import number
from distill_jax.runtime.sharding import Layout
from distill_jax.training.averages import updated
from distill_jax.typing import Batch, Tree

Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """The state of a stage in training: all that a run needs to continue bit for bit.

    Attributes:
      step: number of finished iterations, int32.
      params: parameters by role.
      opt: optimizer states by role.
      ema: EMA of the student's parameters.
      key: PRNG key, which never changes; iteration n uses fold_in(key, n).
      averages: power-function averages of the student's parameters, see averages.updated.
    """

    step: jax.Array
    params: dict[str, Tree]
    opt: dict[str, Tree]
    ema: Tree
    key: jax.Array
    averages: tuple[Tree, ...] = ()


class Rates(NamedTuple):
    """Optimizer settings that may differ between stages; all are traced.

    Attributes:
      learning_rate: the largest learning rate.
      warmup: iterations of linear warm-up; 0 for none.
      decay_to: fraction of learning_rate that a linear decay reaches at the last iteration.
      steps: iterations of the stage.
      ema_decay: decay of the EMA; 0 keeps the parameters themselves.
      weight_decay: decoupled weight decay, times the learning rate (Loshchilov & Hutter 2019).
      ema_ramp: upper bound of the EMA's half-life, as a fraction of the finished iterations, so
        that a long EMA forgets the first parameters; 0 for no bound.
      gammas: exponents of the power-function averages, one for each in the state.
    """

    learning_rate: Any
    warmup: Any
    decay_to: Any
    steps: Any
    ema_decay: Any
    weight_decay: Any = 0.0
    ema_ramp: Any = 0.0
    gammas: tuple[Any, ...] = ()

    def ema_decay_at(self, step: jax.Array) -> jax.Array:
        """Returns the EMA's decay in iteration `step`, from 0.

        min(ema_decay, 0.5^(1 / (ema_ramp step))); Karras et al. (2022), released code, 0.05.
        """
        ramped = 0.5 ** (1 / jnp.maximum(self.ema_ramp * step, 1e-6))
        return jnp.where(self.ema_ramp > 0, jnp.minimum(self.ema_decay, ramped), self.ema_decay)

    def initial_share(self, updates: int) -> float:
        """Returns the share of the first parameters in the EMA after `updates` of the student."""
        return 0.0 if self.ema_ramp > 0 else float(self.ema_decay) ** updates

    def at(self, step: jax.Array) -> jax.Array:
        """Returns the learning rate of iteration `step`, from 0."""
        rise = jnp.minimum(1.0, (step + 1) / jnp.maximum(self.warmup, 1))
        return self.learning_rate * rise * (1 + (self.decay_to - 1) * step / self.steps)


MOMENT = number(0, 1, without=(1,))  # Of a running mean.


@functools.cache
def optimizer(
    b1: Annotated[float, MOMENT],
    b2: Annotated[float, MOMENT],
    clip_norm: Annotated[float, number(0, 1e6)],
    eps: Annotated[float, number(0, 1, without=(0,))] = 1e-8,
) -> Any:
    """Returns Adam at learning rate 1, on gradients clipped by global norm (0: not clipped)."""
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
    """Returns the compiled update of one phase.

        (method, rates, state, frozen, batch, repeat=0) -> (state, metrics)

    `repeat` is the number of this update within the phase. The method's numbers, the rates, the
    frozen networks and `repeat` are traced, and equal arguments give the same function, so all
    rounds of a chain share one compilation. The state is donated. Metrics of any role except the
    student begin with the name of the role. Images of the batch may be bytes, so that only bytes
    are copied to the device.

    Args:
      phases: the phases of one iteration of the method.
      index: index of this phase; the last update of the last phase increments the step.
      roles: function from parameters by role to the networks that a loss gets.
      tx: the optax transform, without the learning rate.
      layout: the layout whose shardings the new state gets; None adds no constraint.
      turn: index of the variant, for a phase that compiles several.
      microbatches: number of parts of the batch whose gradients are accumulated; see accumulated.
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
            x = None if batch.x is None else normalise(batch.x)
            batch = batch._replace(x=x, done=state.step / rates.steps)
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
        params = {**state.params, phase.trains: trained}
        opt = {**state.opt, phase.trains: opt}
        last = (index == len(phases) - 1) & (repeat == phase.updates_per_iteration - 1)
        step, averages = state.step + last, state.averages
        if index == len(phases) - 1:  # After an iteration, whichever phases train the student.
            averages = updated(averages, params["student"], rates.gammas, state.step, step)
        state = TrainState(step, params, opt, ema, state.key, averages)
        metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads), **metrics}
        metrics = {prefix + name: value for name, value in metrics.items()}
        return constrain(state), {**metrics, "learning_rate": rate}

    name = phase.loss.__qualname__.replace(".", "_").lower()
    # JAX logs compilations and traces under this name.
    update.__name__ = f"update_{name}" + (f"_{turn}" if phase.variants > 1 else "")
    return jax.jit(update, donate_argnames="state")


@functools.lru_cache(maxsize=16)
def make_iterations(
    phases: tuple,
    roles: Callable,
    tx: Any,
    layout: Layout | None = None,
    microbatches: int = 1,
) -> Any:
    """Returns a compiled call of several iterations, for updates that are shorter than a call.

        (method, rates, state, frozen, batches) -> (state, metrics)

    `batches` has one batch per update of an iteration. The second axis of its indices, images and
    conditions is the iteration; the null conditions are shared. Metrics have one number per
    iteration. Arguments and results are those of make_update.
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
    """Returns the compiled updates of an iteration by phase and variant; see make_update."""
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
    """Runs one iteration: the updates of every phase in order, each on its own batch.

    Args:
      call: function (updates of a phase, index of one, state, batch, repeat) -> (state, metrics).
      phases: the phases of the iteration.
      updates: the result of all_updates.
      step: number of the iteration, from 0, which selects the variant of each phase.
      state: state before the iteration.
      batches: one batch per update.
    """
    metrics, left = {}, iter(batches)
    for phase, variants in zip(phases, updates, strict=True):
        for repeat in range(phase.updates_per_iteration):
            state, new = call(variants, step % phase.variants, state, next(left), repeat)
            metrics.update(new)
    return state, metrics


def new_state(key: jax.Array, params: dict[str, Tree], tx: Any, averages: int = 0) -> TrainState:
    """Returns the state before the first iteration; it shares no array with `params`.

    Args:
      key: see TrainState.
      params: parameters by role.
      tx: the optax transform.
      averages: number of power-function averages.
    """
    params = jax.tree.map(jnp.copy, params)
    opt = {role: tx.init(tree) for role, tree in params.items()}
    ema, *copies = (jax.tree.map(jnp.copy, params["student"]) for _ in range(1 + averages))
    return TrainState(jnp.zeros((), jnp.int32), params, opt, ema, key, tuple(copies))


def accumulated(gradient: Callable, count: int, constrain: Callable) -> Callable:
    """Returns the function that averages `gradient` over `count` parts of a batch.

    `gradient` is (params, key, batch) -> tree. The parts are processed one after the other, so that
    only the activations of one part are in memory; in each part the devices sum their gradients.
    Part i has rows i, i + count, ..., so that rows stay on their device, and key fold_in(key, i).
    All losses here are means over examples, so their gradient does not change; a loss that compares
    the examples of a batch compares only the examples of a part.

    Args:
      gradient: the function to average; all that it returns is averaged.
      count: number of parts; it divides the number of rows on each device.
      constrain: function that constrains the sums to the sharding of the parameters.
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
