"""A run: the unfinished stages of a config, in order, each from the finished network before it."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from distill_jax.evaluation import pictures
from distill_jax.models.build import matmul_precision
from distill_jax.run.begin import begin
from distill_jax.run.calls import calls, make_iterate
from distill_jax.run.plan import Run
from distill_jax.run.prefetch import ahead
from distill_jax.run.stages import Stage
from distill_jax.run.validation import changes, flat
from distill_jax.runtime import distributed, logging
from distill_jax.sampling.loading import find_final, load
from distill_jax.sampling.manifest import Adapters, Lineage, Manifest, Reference
from distill_jax.storage import checkpoint
from distill_jax.training.loop import Cadence, DivergedError, StoppedError, train
from distill_jax.training.profiler import Profile, tracing
from distill_jax.typing import Tree

# Keys of a config that change a network by rounding at most: a run may go on with others.
FREE = ("evaluate", "keep", "keep_every", "log_every", "mesh", "save_every", "updates_per_call")

# Keys of a config that a manifest repeats.
KEPT = ("schedule", "parameterization", "matmul_precision", "data")


def run(
    planned: Run,
    stop: Callable[[], bool],
    force: bool = False,
    profile: Profile | None = None,
    ideal: Mapping[str, float] | None = None,
) -> bool:
    """Runs the unfinished stages.

    Args:
      planned: from plan.make.
      stop: polled between iterations; see train.train.
      force: goes on in a workdir that was begun with another config.
      profile: iterations that are traced into the workdir's folder profile.
      ideal: seconds that an iteration of each stage takes at the devices' peak; see logs.StageLog.

    Returns:
      Whether there was anything to do.
    """
    todo = [stage for stage in planned.stages if not distributed.agree(stage.finished)]
    if todo:
        for split in ("train", "held_out"):  # Data that are missing end a run before it begins.
            planned.dataset.images(split, 1)
    if profile:
        steps = {stage.name: stage.spec.steps for stage in planned.stages}
        profile = profile.of(steps, steps.keys() - {stage.name for stage in todo})
    _claim(planned.workdir, planned.config, force)
    precision = matmul_precision(planned.config.matmul_precision)
    with logging.compilations(planned.workdir / "compilations.jsonl"), precision:
        fitted = planned.codec is not None and planned.codec.finish()
        for stage in todo:
            began = time.monotonic()
            traced = profile if profile and profile.stage == stage.name else None
            fastest = (ideal or {}).get(stage.name)
            _finish(planned, stage, *_train_stage(planned, stage, stop, traced, fastest))
            logging.say(f"{stage.name}: finished in {time.monotonic() - began:.0f} s")
            if stop():
                raise StoppedError(stage.spec.steps)
        _draw_grids(planned, stop)
    return bool(todo or fitted)


def _draw_grids(planned: Run, stop: Callable[[], bool]) -> None:
    """Writes the pictures of all stages that have none."""
    for stage in planned.stages:
        if stop():
            raise InterruptedError("stopped while drawing grids")
        grid = stage.directory / "grid.png"
        if not distributed.agree(grid.exists()):
            student = load(stage.directory, planned.layout, planned.parts)
            if student.trained.sampler.decodes:
                pictures.draw_grid(student, grid, planned.config.evaluate.w, planned.dataset)
            else:
                pictures.draw_codes(student, grid, planned.dataset.images("held_out", 200))


def _claim(workdir: epath.Path, config: ConfigDict, force: bool) -> None:
    """Writes config.json, or makes sure that the one there says the same."""
    path = workdir / "config.json"
    new = json.loads(config.to_json())
    if path.exists():
        both = (flat(kept(tree)) for tree in (json.loads(path.read_text()), new))
        lines = [f"  {line}" for line in changes(*both)]
        if lines and not force:
            raise ValueError(
                f"{workdir} holds a run of another config:\n" + "\n".join(lines) + "\n"
                "choose another --workdir, or go on there with --resume=force (finished stages "
                "stay as they are)"
            )
        for line in lines:
            logging.say(f"--resume=force: changed{line}")
    distributed.wait("all have read the config of the workdir")
    if distributed.first():
        workdir.mkdir(parents=True, exist_ok=True)
        checkpoint.write_json(path, new)


def kept(config: Mapping[str, Any]) -> dict[str, Any]:
    """Those parts of a config, as plain data, that a run must go on with."""
    return {key: value for key, value in config.items() if key not in FREE}


def _train_stage(
    run: Run,
    stage: Stage,
    stop: Callable[[], bool],
    profile: Profile | None,
    ideal: float | None,
) -> tuple[Tree, Tree | None]:
    """The running mean of the student's weights after the last iteration, and the fake's weights.

    The latter are None unless the stage is to keep them.
    """
    config, spec = run.config, stage.spec
    states = checkpoint.States(stage.directory / "states", config.keep, config.keep_every)
    state, frozen = begin(run, stage, states)
    done, per_call = int(state.step), config.updates_per_call
    cadence = Cadence(spec.steps, config.log_every, config.save_every, per_call)
    made, iterate = calls(run, stage, cadence, done), make_iterate(run, stage, frozen)
    images = stage.batch_size * stage.updates
    log = logging.StageLog(stage.directory, stage.name, spec.steps, done, images, ideal)
    try:
        with (
            contextlib.closing(ahead(made, 2)) as early,
            tracing(profile, iterate, run.workdir / "profile") as traced,
        ):
            state = train(traced, state, early, cadence, log.log, states.save, stop)
    except DivergedError as error:
        last = states.steps()
        good = (
            stage.directory / "states" / str(last[-1])
            if last
            else stage.teacher and stage.teacher.directory
        )
        kept = f"the last good checkpoint is {good}" if good else "nothing was saved before"
        raise ValueError(
            f"stage {stage.name} diverged at {error}; {kept}; try a "
            f"smaller --config.stages.{stage.name}.learning_rate (now {spec.learning_rate:g})"
        ) from error
    finally:
        log.close()
        states.close()
    return state.ema, state.params["fake"]["network"] if spec.keep_fake else None


def _finish(run: Run, stage: Stage, weights: Tree, fake: Tree | None) -> None:
    """Writes final/: the weights and everything needed to sample them, and the fake's weights."""
    spec, final = stage.spec, stage.directory / "final"
    config = json.loads(run.config.to_json())
    method = {"name": spec.method.name, **dataclasses.asdict(stage.method)}
    lineage = Lineage(
        method,
        stage.teacher and _relative(stage.teacher.directory, final),
        _relative(stage.start.directory, final) if spec.init else None,
        stage.fake_start and _relative(stage.fake_start.directory, final),
        spec.steps,
        config=config,
    )
    adapters, roles = None, stage.roles
    if roles.trained.base:
        base = _reference(stage.start.weights.directory, final)
        adapters = Adapters(base, roles.trained.rank, roles.full)
    manifest = Manifest(
        stage=stage.name,
        trained=stage.trained,
        distilled=stage.method.needs_teacher,
        spec=run.dataset.spec,
        model=stage.model,
        lineage=lineage,
        adapters=adapters,
        codec=run.codec and _reference(run.codec.directory, final),
        **{key: config[key] for key in KEPT},
    ).to_json()
    checkpoint.save_final(final, weights, manifest, fake)


def _reference(directory: epath.Path, start: epath.Path) -> Reference:
    return Reference(_relative(directory, start), checkpoint.fingerprint(find_final(directory)))


def _relative(directory: epath.Path, start: epath.Path) -> str:
    """Its final/ seen from `start` where both lie in one workdir, so that it may be moved."""
    path = find_final(directory)
    if path.parent.parent == start.parent.parent:
        return f"../../{path.parent.name}/{path.name}"
    return str(path)
