"""A run: the unfinished stages of a config, in order, each from the finished network before it."""

import time
from collections.abc import Callable, Mapping

from distill_jax.evaluation import pictures
from distill_jax.models.build import matmul_precision
from distill_jax.run.finish import finish
from distill_jax.run.plan import Run
from distill_jax.run.train import train_stage
from distill_jax.run.validation import claim
from distill_jax.runtime import distributed, logging
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
    todo = [
        stage for stage in planned.stages if not distributed.broadcast_from_first(stage.finished)
    ]
    if todo:
        for split in ("train", "test"):  # Data that are missing end a run before it begins.
            planned.dataset.images(split, 1)
    if profile:
        steps = {stage.name: stage.spec.steps for stage in planned.stages}
        profile = profile.of(steps, steps.keys() - {stage.name for stage in todo})
    claim(planned.workdir, planned.config, force)
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
    """Writes the pictures of all stages that have none."""
    for stage in planned.stages:
        if stop():
            raise InterruptedError("stopped while drawing grids")
        grid = stage.directory / "grid.png"
        if not distributed.broadcast_from_first(grid.exists()):
            student = load(stage.directory, planned.layout, planned.parts, planned.allow)
            pictures.draw(student, grid, planned.config.evaluate.w, planned.dataset)
