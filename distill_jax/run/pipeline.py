"""Runs a plan: trains the unfinished stages in order, then draws their pictures."""

import json
import time
from collections.abc import Callable, Mapping

from distill_jax.evaluation import pictures
from distill_jax.models.build import matmul_precision
from distill_jax.run.finish import finish
from distill_jax.run.plan import Run
from distill_jax.run.train import train_stage
from distill_jax.run.validation import claim
from distill_jax.runtime import distributed, logging, record
from distill_jax.runtime.files import append
from distill_jax.sampling.loading import load
from distill_jax.training.loop import StoppedError
from distill_jax.training.profiler import Profile


def run(
    planned: Run,
    stop: Callable[[], bool],
    force: bool = False,
    profile: Profile | None = None,
    ideal: Mapping[str, float] | None = None,
) -> bool:
    """Runs the unfinished stages of a plan.

    Args:
      planned: the plan, from plan.make.
      stop: function that is polled between iterations; see loop.train.
      force: whether to continue in a workdir of another config.
      profile: iterations to trace; the traces are written to the workdir's folder profile.
      ideal: seconds of an iteration of each stage at the devices' peak; see logging.StageLog.

    Returns:
      Whether there was anything to do.
    """
    todo = [
        stage for stage in planned.stages if not distributed.broadcast_from_first(stage.finished)
    ]
    if todo:
        for split in ("train", "test"):  # Fails before the training if data are missing.
            planned.dataset.images(split, 1)
    if profile:
        steps = {stage.name: stage.spec.steps for stage in planned.stages}
        profile = profile.of(steps, steps.keys() - {stage.name for stage in todo})
    claim(planned.workdir, planned.config, force)
    if todo and distributed.first():
        append(planned.workdir / "environment.jsonl", json.dumps(record.start()) + "\n")
    precision = matmul_precision(planned.config.matmul_precision)
    with logging.compilations(planned.workdir / "compilations.jsonl"), precision:
        fitted = planned.codec is not None and planned.codec.finish()
        for stage in todo:
            began = time.monotonic()
            traced = profile if profile and profile.stage == stage.name else None
            fastest = (ideal or {}).get(stage.name)
            finish(planned, stage, *train_stage(planned, stage, stop, traced, fastest))
            logging.say(f"{stage.name}: finished in {time.monotonic() - began:.0f} s")
            if stop():
                raise StoppedError(stage.spec.steps)
        draw_grids(planned, stop)
    return bool(todo or fitted)


def draw_grids(planned: Run, stop: Callable[[], bool]) -> None:
    """Draws the pictures of all stages that lack one."""
    for stage in planned.stages:
        if stop():
            raise InterruptedError("stopped while drawing grids")
        grid = stage.directory / "grid.png"
        if not distributed.broadcast_from_first(pictures.is_whole(grid)):
            if distributed.first() and grid.exists():
                logging.set_damaged_aside(grid, "no whole picture")
            student = load(stage.directory, planned.layout, planned.parts, planned.allow)
            pictures.draw(student, grid, planned.config.evaluate.w, planned.dataset)
