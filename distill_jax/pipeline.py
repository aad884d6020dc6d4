"""A run: the unfinished stages of a config, in order, each from the finished network before it."""

import dataclasses
import importlib.metadata
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from distill_jax import checkpoint, config as configs, logs
from distill_jax.data import DATASETS, Dataset
from distill_jax.diffusion.denoiser import Binding
from distill_jax.methods import METHODS, Method, Nets
from distill_jax.sharding import Layout, make_layout
from distill_jax.student import (
    Student,
    abstract_params,
    find_final,
    initial_params,
    load,
    make_binding,
)
from distill_jax.tables import build, suggestion
from distill_jax.train import (
    Cadence,
    Diverged,
    Rates,
    TrainState,
    graft,
    make_update,
    new_state,
    optimizer,
    train,
)
from distill_jax.typing import Batch, Tree


@dataclasses.dataclass(frozen=True)
class Bind:
    """Parameters by role -> the networks that a loss sees."""

    student: Binding
    teacher: Binding | None

    def __call__(self, params: Mapping[str, Tree]) -> Nets:
        teacher = None if self.teacher is None else self.teacher(params["teacher"])
        return Nets(self.student(params["student"]), teacher)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One checked entry of config.stages.

    Attributes:
      name: such as s02_n0032.
      index: from 0.
      spec: its entry in the config.
      method: what its losses are.
      bind: its networks.
      directory: where it writes.
      teacher: the directory of the finished network it starts from, None without one.
    """

    name: str
    index: int
    spec: ConfigDict
    method: Method
    bind: Bind
    directory: epath.Path
    teacher: epath.Path | None

    @property
    def finished(self) -> bool:
        """Whether its network is complete on disk."""
        return (self.directory / "final" / "manifest.json").exists()


@dataclasses.dataclass(frozen=True)
class Run:
    """A checked config: everything has been looked up, nothing has been started."""

    config: ConfigDict
    workdir: epath.Path
    dataset: Dataset
    layout: Layout
    stages: tuple[Stage, ...]


def plan(config: ConfigDict, workdir: epath.PathLike) -> Run:
    """Looks up every name and checks every number of a config, and starts nothing.

    Raises:
      KeyError: for a key or name that nobody knows, with a suggestion.
      ValueError: for numbers that do not fit each other.
    """
    _check_keys(config, configs.base(), "config")
    if not config.stages:
        raise ValueError("config.stages is empty: a run needs at least one stage")
    dataset = build(DATASETS, "dataset", config.data)
    layout = make_layout(config.mesh)
    layout.check_batch(config.batch_size)
    workdir = epath.Path(workdir).absolute()
    stages: list[Stage] = []
    for name in sorted(config.stages):
        try:
            stages.append(_plan_stage(config, name, stages, dataset, workdir))
        except (KeyError, ValueError) as error:
            raise type(error)(f"stage {name}: {error.args[0]}") from error
    return Run(config, workdir, dataset, layout, tuple(stages))


def _check_keys(config: ConfigDict, known: Mapping[str, Any], path: str) -> None:
    for key, value in config.items():
        if key not in known:
            raise KeyError(
                f"unknown key {path}.{key}; known: {', '.join(known)}{suggestion(key, known)}"
            )
        if isinstance(known[key], ConfigDict) and "name" not in known[key] and key != "stages":
            _check_keys(value, known[key], f"{path}.{key}")


def _plan_stage(
    config: ConfigDict, name: str, before: list[Stage], dataset: Dataset, workdir: epath.Path
) -> Stage:
    spec = config.stages[name]
    _check_keys(spec, configs.stage("", "", steps=1, learning_rate=1.0), f"stages.{name}")
    if spec.steps < 1:
        raise ValueError(f"steps is {spec.steps}; expected at least 1")
    method = build(METHODS, "method", spec.method)
    binding = make_binding(config.to_dict(), dataset.shape, dataset.num_classes)
    teacher_dir, teacher = _find_teacher(spec, method, before)
    if teacher is None:
        method.check(None)
    else:
        method.check(teacher.method)
        fresh = abstract_params(binding, method, dataset.shape)
        shape = getattr(teacher, "shape", dataset.shape)
        graft(fresh, abstract_params(teacher.binding, teacher.method, shape), spec.new)
    bind = Bind(binding, teacher.binding if teacher and method.needs_teacher else None)
    return Stage(name, len(before), spec, method, bind, workdir / name, teacher_dir)


@dataclasses.dataclass(frozen=True)
class _Teacher:
    """What a stage must know of its teacher before that one is trained."""

    binding: Binding
    method: Method


def _find_teacher(
    spec: ConfigDict, method: Method, before: list[Stage]
) -> tuple[epath.Path | None, "_Teacher | Student | None"]:
    """Where the finished network is or will be, and what it is."""
    if not spec.teacher and not method.needs_teacher:
        return None, None
    if not spec.teacher and not before:
        raise ValueError(
            f"method {spec.method.name!r} needs a teacher, and no stage comes before; put one "
            "there, or set `teacher` to the directory of a finished network"
        )
    named = {stage.name: stage for stage in before}
    short = {stage.name.partition("_")[2]: stage for stage in before}
    stage = before[-1] if not spec.teacher else named.get(spec.teacher) or short.get(spec.teacher)
    if stage is not None:
        return stage.directory, _Teacher(stage.bind.student, stage.method)
    if "/" not in spec.teacher:
        raise ValueError(
            f"teacher {spec.teacher!r} is no earlier stage; earlier ones: {', '.join(short)}"
            f"{suggestion(spec.teacher, short)}; a directory needs a slash in it"
        )
    student = load(spec.teacher)
    return find_final(spec.teacher), student


def show(run: Run) -> str:
    """The plan as text: one line per stage, then the totals."""
    rows = []
    for stage in run.stages:
        low_high = stage.method.w_range
        rows.append(
            (
                stage.name,
                stage.spec.method.name,
                stage.method.num_steps,
                "-" if low_high is None else f"{low_high[0]:g} to {low_high[1]:g}",
                f"{stage.spec.steps:,}",
                "-" if stage.teacher is None else stage.teacher.name,
                "done" if stage.finished else "to do",
            )
        )
    titles = ("stage", "method", "sampling steps", "w", "updates", "teacher", "state")
    last = run.stages[-1]
    shapes = abstract_params(last.bind.student, last.method, run.dataset.shape)
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    updates = sum(stage.spec.steps for stage in run.stages)
    mesh = ", ".join(f"{axis} {size}" for axis, size in run.layout.mesh.shape.items())
    return "\n".join(
        (
            logs.table(titles, rows),
            f"{size:,} parameters ({run.config.model.name}), {updates:,} updates of "
            f"{run.config.batch_size} images {'x'.join(map(str, run.dataset.shape))} "
            f"({run.config.data.name}) on {jax.device_count()} {jax.devices()[0].device_kind} "
            f"device(s), mesh: {mesh}",
            f"workdir {run.workdir}",
        )
    )


def run(run: Run, stop: Callable[[], bool], force: bool = False) -> bool:
    """Runs the unfinished stages.

    Args:
      run: from `plan`.
      stop: polled between iterations; see train.train.
      force: goes on in a workdir that was begun with another config.

    Returns:
      Whether there was anything to do.
    """
    _claim(run.workdir, run.config, force)
    logs.log_compilations(run.workdir / "compilations.jsonl")
    todo = [stage for stage in run.stages if not stage.finished]
    for stage in todo:
        began = time.monotonic()
        state, teacher = _train_stage(run, stage, stop)
        _finish(run, stage, state, teacher)
        logs.say(f"{stage.name}: finished in {time.monotonic() - began:.0f} s")
    for stage in run.stages:
        if not (stage.directory / "grid.png").exists():
            draw_grid(load(stage.directory), stage.directory / "grid.png", run.config.evaluate.w)
    return bool(todo)


def _claim(workdir: epath.Path, config: ConfigDict, force: bool) -> None:
    """Writes config.json, or makes sure that the one there says the same."""
    path = workdir / "config.json"
    new = json.loads(config.to_json())
    if path.exists():
        old, new_flat = _flat(json.loads(path.read_text())), _flat(new)
        keys = sorted(key for key in old.keys() | new_flat.keys() if old.get(key) != new_flat.get(key))
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
    init, like = _initial_state(run, stage, teacher, tx)
    states = checkpoint.States(stage.directory / "states", config.keep)
    state = states.restore(like, logs.say)
    if state is None:
        state = init()
    else:
        logs.say(f"{stage.name}: going on after iteration {int(state.step)}")

    frozen = {"teacher": teacher.params} if stage.bind.teacher else {}
    updates = [
        make_update(stage.method.phases, i, stage.bind, tx, layout.constrain)
        for i in range(len(stage.method.phases))
    ]
    rates = Rates(spec.learning_rate, spec.warmup, spec.decay_to, spec.steps, spec.ema_decay)
    method, rates = jax.device_put((stage.method, rates), layout.replicated)

    def iterate(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        metrics = {}
        for update in updates:
            state, new = update(method, rates, state, frozen, batch)
            metrics.update(new)
        return state, metrics

    log = logs.StageLog(stage.directory, stage.name, spec.steps, int(state.step))
    cadence = Cadence(spec.steps, config.log_every, config.save_every)
    try:
        state = train(iterate, state, _batches(run, stage), cadence, log.log, states.save, stop)
    except Diverged as error:
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


def _initial_state(
    run: Run, stage: Stage, teacher: Student | None, tx: Any
) -> tuple[Callable[[], TrainState], Tree]:
    """A function that makes the first state where it belongs, and that state's abstract values."""

    def init(key: jax.Array, teacher_params: Tree | None) -> TrainState:
        k_init, k_train = jax.random.split(key)
        params = initial_params(k_init, stage.bind.student, stage.method, run.dataset.shape)
        if teacher_params is not None:
            params = graft(params, teacher_params, stage.spec.new)
        return new_state(k_train, {"student": params}, tx)

    key = jax.random.fold_in(jax.random.key(run.config.seed), stage.index)
    arguments = (key, None if teacher is None else teacher.params)
    like = jax.eval_shape(init, *arguments)
    shardings = run.layout.shardings(like)
    like = jax.tree.map(lambda leaf, sharding: leaf.update(sharding=sharding), like, shardings)
    return lambda: jax.jit(init, out_shardings=shardings)(*arguments), like


def _batches(run: Run, stage: Stage) -> Callable[[int], Batch]:
    """Batch of iteration n: a function of the seed, the stage and n alone."""
    size, part = run.config.batch_size, (jax.process_index(), jax.process_count())
    seed = run.config.seed * 1000 + stage.index
    null = {"label": np.full(size // part[1], run.dataset.num_classes, np.int32)}

    def batch(step: int) -> Batch:
        x, label = run.dataset.batch(seed, step, size, part)
        return run.layout.place(Batch(x, {"label": label}, null))

    return batch


def _finish(run: Run, stage: Stage, state: TrainState, teacher: Student | None) -> None:
    """Writes final/: the running mean of the weights and everything needed to sample them."""
    method, final = stage.method, stage.directory / "final"
    steps = method.num_steps
    config = json.loads(run.config.to_json())
    manifest = {
        "stage": stage.name,
        "method": {"name": stage.spec.method.name, **dataclasses.asdict(method)},
        "num_steps": steps,
        "times": None if method.continuous else [(i + 1) / steps for i in reversed(range(steps))],
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


def _relative(path: epath.Path, start: epath.Path) -> str:
    """`path` seen from `start` where both lie in one workdir, so that it may be moved."""
    if path.parent.parent == start.parent.parent:
        return f"../../{path.parent.name}/{path.name}"
    return str(path)


def draw_grid(student: Student, path: epath.Path, w: tuple[float, ...]) -> None:
    """Writes the same noise at every w (rows) and class (columns), the class once per column."""
    classes = np.arange(student.num_classes)
    if not (student.takes_w or student.can_be_guided):
        w = (None,)
    elif student.takes_w:
        low, high = student.method.w_range
        w = [strength for strength in w if low <= strength <= high] or [low]
    rows = [student.sample(jax.random.key(0), len(classes), classes, strength) for strength in w]
    logs.save_grid(path, np.asarray(jnp.concatenate(rows)), columns=len(classes))
