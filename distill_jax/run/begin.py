"""The start of a stage: restores its newest state or makes the first one, and loads weights."""

import dataclasses
import functools
from collections.abc import Callable, Container, Mapping
from typing import Any

import jax

from distill_jax.models.adapters import Adapted, merged
from distill_jax.models.build import rounded
from distill_jax.run.plan import Run
from distill_jax.run.stages import Ancestor, Stage
from distill_jax.runtime import logging
from distill_jax.runtime.sharding import Layout
from distill_jax.sampling.loading import load_own
from distill_jax.storage.states import States
from distill_jax.training.roles import Roles
from distill_jax.training.update import TrainState, new_state
from distill_jax.typing import Tree


def begin(run: Run, stage: Stage, states: States) -> tuple[TrainState, dict[str, Tree]]:
    """Returns the newest or the first state of a stage, and its frozen parameters by role."""
    weights, roles, kept = Weights(run.layout, run.config.frozen_dtype, run.allow), stage.roles, {}
    start = fake = base = None
    if roles.trained.base:
        base = kept[roles.trained.base] = weights.frozen(stage.start.weights)
        start = weights.own(stage.start) if stage.start.base else None
    elif stage.start:
        start = weights.whole(stage.start)
        fake = stage.fake_start and weights.whole(stage.fake_start, "fake")
    if roles.frozen.base:
        kept["teacher"] = weights.own(stage.called)
    elif roles.teacher and "teacher" not in kept:
        kept["teacher"] = weights.frozen(stage.called)
    key = jax.random.fold_in(jax.random.key(run.config.seed), stage.index)
    averages = len(stage.spec.posthoc)
    make = _Start(roles, stage.trained.inputs, stage.tx, run.layout, averages)
    first = functools.partial(make, key, start, fake, base)  # type: ignore[misc]  # It is a method.
    state = states.restore(run.layout.abstract(jax.eval_shape(first)), logging.say)
    if state is None:
        return first(), kept
    logging.say(f"{stage.name}: going on after iteration {int(state.step)}")
    return state, kept


class Weights:
    """A reader of the finished networks that a stage begins from; it reads each file once."""

    def __init__(self, layout: Layout, frozen_dtype: str, allow: Container[str] = ()):
        self._layout, self._dtype, self._allow = layout, frozen_dtype, allow
        self._read: dict[tuple, Tree] = {}

    def own(self, found: Ancestor, name: str = "params", dtype: str | None = None) -> Tree:
        """Returns the weights or adapters in a network's directory; `dtype` as in loading.load."""
        key = found.directory, name, dtype
        if key not in self._read:
            allow = self._allow
            self._read[key] = load_own(found.directory, self._layout, name, allow, dtype)
        return self._read[key]

    def whole(self, found: Ancestor, name: str = "params") -> Tree:
        """Returns the network's weights, with its adapters merged into them."""
        own = self.own(found, name)
        base = found.base or found.merged
        return own if base is None else merged(Adapted(self.own(base), own))

    def frozen(self, found: Ancestor) -> Tree:
        """Returns a network's weights in the dtype of frozen networks, read in it if possible."""
        plain = found.base is None and found.merged is None
        if plain and (found.directory, "params", None) not in self._read:
            return self.own(found, dtype=None if self._dtype == "float32" else self._dtype)
        return rounded(self.whole(found), self._dtype)


def landing(run: Run, stage: Stage, frozen: Mapping[str, Tree]) -> Callable[[Tree], Tree | Adapted]:
    """Returns the map from the trained weights, or adapters, of a stage to the network's.

    With the option `onto` weights are added as a difference: onto + (trained - start). Unchanged
    weights give those of `onto` bit for bit. Adapters are a difference, of its weights.

    Args:
      run: the run.
      stage: the stage.
      frozen: its frozen parameters by role.
    """
    base, onto, start = stage.roles.trained.base, stage.onto, stage.start
    reader = Weights(run.layout, run.config.frozen_dtype, run.allow)
    if base:
        return lambda own: Adapted(reader.frozen(onto) if onto else frozen[base], own)
    if onto is None or start is None:
        return lambda own: own
    return lambda own: _added(reader.whole(onto), own, reader.whole(start))


@jax.jit
def _added(onto: Tree, own: Tree, start: Tree) -> Tree:
    return jax.tree.map(lambda o, w, s: o + (w - s), onto, own, start)


@dataclasses.dataclass(frozen=True)
class _Start:
    """Makes the sharded state before the first iteration; equal instances share a program."""

    roles: Roles
    inputs: tuple[str, ...]
    tx: Any
    layout: Layout
    averages: int

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(
        self, key: jax.Array, start: Tree | None, fake: Tree | None, base: Tree | None
    ) -> TrainState:
        k_init, k_train = jax.random.split(key)
        roles = self.roles.initial(k_init, self.inputs, start, fake, base)
        return self.layout.constrain(new_state(k_train, roles, self.tx, self.averages))
