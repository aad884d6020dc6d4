"""A run: the unfinished stages of a config, in order, each from the finished network before it."""

import dataclasses
import functools
import importlib.metadata
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from distill_jax import checkpoint, logs
from distill_jax.binding import initial_params
from distill_jax.data import Source
from distill_jax.diffusion.denoiser import Binding
from distill_jax.methods import Method
from distill_jax.pixels import normalise
from distill_jax.plan import Run, Stage
from distill_jax.student import Student, find_final, load
from distill_jax.train import (
    Cadence,
    DivergedError,
    TrainState,
    graft,
    make_update,
    new_state,
    optimizer,
    train,
)
from distill_jax.typing import Batch, Tree


def run(planned: Run, stop: Callable[[], bool], force: bool = False) -> bool:
    """Runs the unfinished stages.

    Args:
      planned: from plan.make.
      stop: polled between iterations; see train.train.
      force: goes on in a workdir that was begun with another config.

    Returns:
      Whether there was anything to do.
    """
    todo = [stage for stage in planned.stages if not stage.finished]
    if todo:
        for split in ("train", "held_out"):  # Data that are missing end a run before it begins.
            planned.dataset.images(split, 1)
    _claim(planned.workdir, planned.config, force)
    with logs.compilations(planned.workdir / "compilations.jsonl"):
        for stage in todo:
            began = time.monotonic()
            state, teacher = _train_stage(planned, stage, stop)
            _finish(planned, stage, state, teacher)
            logs.say(f"{stage.name}: finished in {time.monotonic() - began:.0f} s")
        for stage in planned.stages:
            grid = stage.directory / "grid.png"
            if not grid.exists():
                student = load(stage.directory)
                if student.method.decodes:
                    draw_grid(student, grid, planned.config.evaluate.w)
                else:
                    draw_codes(student, grid, planned.dataset.images("held_out", 200))
    return bool(todo)


def _claim(workdir: epath.Path, config: ConfigDict, force: bool) -> None:
    """Writes config.json, or makes sure that the one there says the same."""
    path = workdir / "config.json"
    new = json.loads(config.to_json())
    if path.exists():
        old, new_flat = _flat(json.loads(path.read_text())), _flat(new)
        keys = sorted(
            key for key in old.keys() | new_flat.keys() if old.get(key) != new_flat.get(key)
        )
        lines = [f"  {key}: {old.get(key)} there, {new_flat.get(key)} now" for key in keys]
        if lines and not force:
            raise ValueError(
                f"{workdir} holds a run of another config:\n" + "\n".join(lines) + "\n"
                "choose another --workdir, or go on there with --resume=force (finished stages "
                "stay as they are)"
            )
        for line in lines:
            logs.say(f"--resume=force: changed{line}")
    if jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(path, new)


def _flat(tree: Any, path: str = "config") -> dict[str, Any]:
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {k: v for key, value in tree.items() for k, v in _flat(value, f"{path}.{key}").items()}


def _train_stage(run: Run, stage: Stage, stop: Callable[[], bool]) -> tuple[TrainState, Any]:
    config, spec, layout = run.config, stage.spec, run.layout
    teacher = None if stage.teacher is None else load(stage.teacher, layout)
    tx = optimizer(**config.optimizer)
    start = _Start(stage.bind.student, tuple(spec.new), tx, layout.constrain)
    key = jax.random.fold_in(jax.random.key(config.seed), stage.index)
    first = functools.partial(start, key, stage.method, None if teacher is None else teacher.params)
    states = checkpoint.States(stage.directory / "states", config.keep)
    state = states.restore(layout.abstract(jax.eval_shape(first)), logs.say)
    if state is None:
        state = first()
    else:
        logs.say(f"{stage.name}: going on after iteration {int(state.step)}")

    frozen = {"teacher": teacher.params} if stage.bind.teacher else {}
    updates = [
        make_update(stage.method.phases, i, stage.bind, tx, layout.constrain)
        for i in range(len(stage.method.phases))
    ]
    method, rates = jax.device_put((stage.method, stage.rates), layout.replicated)

    def iterate(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        metrics = {}
        for update in updates:
            state, new = update(method, rates, state, frozen, batch)
            metrics.update(new)
        return state, metrics

    log = logs.StageLog(stage.directory, stage.name, spec.steps, int(state.step))
    cadence = Cadence(spec.steps, config.log_every, config.save_every)
    try:
        state = train(
            iterate,
            state,
            _batches(run, stage, int(state.step)),
            cadence,
            log.log,
            states.save,
            stop,
        )
    except DivergedError as error:
        last = states.steps()
        good = stage.directory / "states" / str(last[-1]) if last else stage.teacher
        raise ValueError(
            f"stage {stage.name} diverged at {error}; the last good checkpoint is {good}; try a "
            f"smaller --config.stages.{stage.name}.learning_rate (now {spec.learning_rate:g})"
        ) from error
    finally:
        log.close()
        states.close()
    return state, teacher


@dataclasses.dataclass(frozen=True)
class _Start:
    """Makes the state before the first iteration where it belongs; equal ones share a program."""

    binding: Binding
    new: tuple[str, ...]
    tx: Any
    constrain: Callable[[Tree], Tree]

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, key: jax.Array, method: Method, teacher: Tree | None) -> TrainState:
        k_init, k_train = jax.random.split(key)
        params = initial_params(k_init, self.binding, method)
        if teacher is not None:
            params = graft(params, teacher, self.new)
        return self.constrain(new_state(k_train, {"student": params}, self.tx))


def _batches(run: Run, stage: Stage, start: int) -> Iterator[Batch]:
    """The batches from iteration `start` on: functions of seed, stage and iteration alone."""
    size, part = run.config.batch_size, (jax.process_index(), jax.process_count())
    seed, classes = run.config.seed * 1000 + stage.index, run.dataset.num_classes
    null = {"label": np.full(size // part[1], classes, np.int32)} if classes else {}
    for x, label in run.dataset.batches(seed, start, size, part):
        batch = run.layout.place(Batch(x, {"label": label} if classes else {}, null))
        yield batch._replace(x=_normalise(batch.x))


_normalise = jax.jit(normalise)  # On the device: bytes are what travels there.


def _finish(run: Run, stage: Stage, state: TrainState, teacher: Student | None) -> None:
    """Writes final/: the running mean of the weights and everything needed to sample them."""
    method, final = stage.method, stage.directory / "final"
    steps = method.num_steps
    config = json.loads(run.config.to_json())
    manifest = {
        "stage": stage.name,
        "method": {"name": stage.spec.method.name, **dataclasses.asdict(method)},
        "num_steps": steps,
        "times": _times(method),
        "w_range": method.w_range,
        "shape": run.dataset.shape,
        "num_classes": run.dataset.num_classes,
        **{key: config[key] for key in ("model", "schedule", "parameterization", "data")},
        "parent": None if teacher is None else _relative(find_final(stage.teacher), final),
        "updates": stage.spec.steps,
        "metrics": {},
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "flax", "optax")},
        "config": config,
    }
    checkpoint.save_final(final, state.ema, manifest)


def _times(method: Method) -> list[float] | None:
    """The times that the network is called with, in order; None where it knows all."""
    n = method.num_steps
    if method.continuous:
        return None
    return [i / n for i in (range(n, 0, -1) if method.decodes else range(n))]


def _relative(path: epath.Path, start: epath.Path) -> str:
    """`path` seen from `start` where both lie in one workdir, so that it may be moved."""
    if path.parent.parent == start.parent.parent:
        return f"../../{path.parent.name}/{path.name}"
    return str(path)


def draw_grid(student: Student, path: epath.Path, w: tuple[float, ...]) -> None:
    """Writes the same noise at every w (rows) and the first classes (columns)."""
    columns = min(student.num_classes, 10) or 10
    classes = np.arange(columns) if student.num_classes else None
    if not (student.takes_w or student.can_be_guided):
        w = (None,)
    elif student.takes_w:
        low, high = student.method.w_range
        w = [strength for strength in w if low <= strength <= high] or [low]
    rows = [student.sample(jax.random.key(0), columns, classes, strength) for strength in w]
    logs.save_grid(path, np.asarray(jnp.concatenate(rows)), columns)


def draw_codes(student: Student, path: epath.Path, held_out: Source) -> None:
    """Writes an image of each of the first classes, and below it the noise that an encoder finds.

    The noise is divided by 3, so that black and white are three standard deviations.
    """
    classes = range(min(student.num_classes, 10))
    first = [int(np.argmax(held_out.label == label)) for label in classes] or [*range(10)]
    x, label = normalise(held_out.x[first]), held_out.label[first]
    z = student.encode(x, label if student.num_classes else None)
    logs.save_grid(path, np.concatenate([x, np.asarray(z) / 3]), len(first))
