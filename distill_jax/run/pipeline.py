"""Runs a plan: trains the unfinished stages in order, then draws their pictures."""

import dataclasses
import time
from collections.abc import Callable, Mapping

from distill_jax.data.base import has_images
from distill_jax.evaluation import compare, pictures
from distill_jax.evaluation.protocols import prompts_for
from distill_jax.models.build import matmul_precision
from distill_jax.run import data, encode
from distill_jax.run.claim import claim
from distill_jax.run.finish import finish
from distill_jax.run.lock import Lock, hold
from distill_jax.run.plan import Run
from distill_jax.run.train import train_stage
from distill_jax.runtime import distributed, logging, record
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
    """Runs the unfinished stages of a plan, and holds the lock of the workdir meanwhile.

    Args:
      planned: the plan, from plan.make.
      stop: function that is polled between iterations; see loop.train.
      force: whether to continue in a workdir of another config.
      profile: iterations to trace; the traces are written to the workdir's folder profile.
      ideal: seconds of an iteration of each stage at the devices' peak; see logging.StageLog.

    Returns:
      Whether there was anything to do.

    Raises:
      ValueError: if another run holds the workdir, or the workdir vanishes.
    """
    with hold(planned.workdir) as lock:
        return _run(planned, stop, lock, force, profile, ideal or {})


def _run(
    planned: Run,
    stop: Callable[[], bool],
    lock: Lock,
    force: bool,
    profile: Profile | None,
    ideal: Mapping[str, float],
) -> bool:
    """Runs the unfinished stages of a plan, under the lock of its workdir."""
    todo = [
        stage for stage in planned.stages if not distributed.broadcast_from_first(stage.finished)
    ]
    if todo:
        data.check_images(planned.dataset, data.read_record(planned.workdir))
    if profile:
        steps = {stage.name: stage.spec.steps for stage in planned.stages}
        profile = profile.of(steps, steps.keys() - {stage.name for stage in todo})
    claim(planned.workdir, planned.config, force, data.record(planned.dataset))
    if todo and distributed.first():
        logging.append_line(planned.workdir / "environment.jsonl", record.start())
    precision = matmul_precision(planned.config.matmul_precision)
    with logging.compilations(planned.workdir / "compilations.jsonl"), precision:
        fitted = finish_fits(planned, stop, lock)
        if todo and planned.conditioner is not None:
            data.say_cut(planned.dataset, planned.conditioner.conditioner)
        if todo:
            planned = fill_cache(planned, stop, lock)[0]
        for stage in todo:
            began = time.monotonic()
            traced = profile if profile and profile.stage == stage.name else None
            lock.check()
            fastest = ideal.get(stage.name)
            weights = train_stage(planned, stage, stop, lock, traced, fastest)
            lock.check()
            finish(planned, stage, *weights)
            logging.say(f"{stage.name}: finished in {time.monotonic() - began:.0f} s")
            if stop():
                raise StoppedError(stage.spec.steps)
        draw_grids(planned, stop, lock)
    return bool(todo or fitted)


def finish_fits(planned: Run, stop: Callable[[], bool], lock: Lock) -> bool:
    """Finishes the codec and the text encoder of a run; returns whether there was anything to do.

    Raises:
      InterruptedError: if `stop` returns true; the next call goes on.
    """
    codec, conditioner = planned.codec, planned.conditioner
    fitted = codec is not None and codec.finish()
    return (conditioner is not None and conditioner.finish(_checked(stop, lock))) or fitted


def fill_cache(planned: Run, stop: Callable[[], bool], lock: Lock) -> tuple[Run, bool]:
    """Finishes the cache of a run whose codec and text encoder are finished, and frees both.

    Returns:
      The run whose batches come from the cache, and whether there was anything to do.

    Raises:
      InterruptedError: if `stop` returns true; the next call goes on from there.
    """
    cache, filled = planned.cache, False
    if cache is not None:
        found, filled = encode.finish(cache, _checked(stop, lock))
        dataset = dataclasses.replace(cache.dataset, cache=found)
        planned = dataclasses.replace(planned, dataset=dataset)
    for fit in filter(None, (planned.codec, planned.conditioner)):
        fit.release()
    return planned, filled


def _checked(stop: Callable[[], bool], lock: Lock) -> Callable[[], bool]:
    """Returns `stop` that also checks that the workdir is still this run's."""

    def stopped() -> bool:
        lock.check_here()
        return stop()

    return stopped


def report(planned: Run, stop: Callable[[], bool], lock: Lock) -> bool:
    """Writes the report of a run's finished stages; see compare.write_report.

    Data without images have no report, because there is nothing to compare with.
    """
    if not has_images(planned.dataset):
        return False
    settings, given = planned.config.evaluate.to_dict(), (planned.layout, planned.parts)
    made = planned.workdir, lambda: planned.evaluator, settings, _checked(stop, lock)
    data, num = planned.config.data.to_dict(), settings["num_samples"]
    settings["prompts"] = prompts_for(data, num)
    return compare.write_report(*made, *given, planned.allow)


def draw_grids(planned: Run, stop: Callable[[], bool], lock: Lock) -> None:
    """Draws the pictures of all stages that lack one."""
    for stage in planned.stages:
        if stop():
            raise InterruptedError("stopped while drawing grids")
        grid = stage.directory / "grid.png"
        if not distributed.broadcast_from_first(pictures.is_whole(grid)):
            if distributed.first() and grid.exists():
                logging.set_damaged_aside(grid, "no whole picture")
            lock.check()
            student = load(stage.directory, planned.layout, planned.parts, planned.allow)
            pictures.draw(student, grid, planned.config.evaluate.w, planned.dataset)
