"""The training of one stage, from its first or newest state to its last iteration."""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from distill_jax.run import snapshots
from distill_jax.run.begin import begin, landing
from distill_jax.run.calls import calls, make_iterate
from distill_jax.run.lock import Lock
from distill_jax.run.monitor import Monitor
from distill_jax.run.plan import Run
from distill_jax.run.prefetch import prefetch
from distill_jax.run.stages import Stage
from distill_jax.runtime import logging
from distill_jax.storage.snapshots import remove_after
from distill_jax.storage.states import States
from distill_jax.training.loop import Cadence, DivergedError, check_finite, train
from distill_jax.training.profiler import Profile, tracing
from distill_jax.training.update import TrainState
from distill_jax.typing import Tree


def train_stage(
    run: Run,
    stage: Stage,
    stop: Callable[[], bool],
    lock: Lock,
    profile: Profile | None,
    ideal: float | None,
) -> tuple[Tree, Tree | None, Mapping[str, Any] | None]:
    """Trains a stage; returns the EMA of the student's weights, the fake's, and the best's record.

    With config.evaluate.keep_best the EMA is the best one that was measured; the record is None
    without. The fake's weights are None unless the stage has keep_fake=True.
    """
    config, spec = run.config, stage.spec
    states = States(stage.directory / "states", config.keep, config.keep_every)
    state, frozen = begin(run, stage, states)
    for earlier in run.stages[: run.stages.index(stage)] if not config.keep_states else ():
        States.delete(earlier.directory / "states", config.keep_every)
    done, per_call = int(state.step), config.updates_per_call
    cadence = Cadence(spec.steps, config.log_every, config.save_every, per_call)
    made, iterate = calls(run, stage, cadence, done), make_iterate(run, stage, frozen)
    images = stage.batch_size * stage.updates
    landed = landing(run, stage, frozen)
    title, after = f"{stage.name} ({stage.index + 1}/{len(config.stages)})", _after(run, stage)
    log = logging.StageLog(stage.directory, title, spec.steps, done, images, ideal, after)
    monitor = Monitor(run, stage, landed, log, lock)

    def write_log(step: int, values: list[dict[str, float]]) -> None:
        lock.check_here()
        log.log(step, values)

    def save(step: int, state: TrainState) -> None:
        check_finite(step, state)
        lock.check()
        states.save(step, state, best=monitor.best)

    try:
        monitor.restore(states, state)
        remove_after(stage.directory, done)
        with (
            contextlib.closing(prefetch(made, 2)) as early,
            tracing(profile, iterate, run.workdir / "profile") as traced,
        ):
            storing = snapshots.storing(monitor.after(traced), stage, log, lock)
            state = train(storing, state, early, cadence, write_log, save, stop)
        check_finite(spec.steps, state)
    except DivergedError as error:
        raise ValueError(_advice(stage, states, error)) from error
    finally:
        log.close()
        try:
            states.close()
        except OSError:
            lock.check_here()  # A workdir that vanished is the cause of it.
            raise
    fake = state.params["fake"]["network"] if spec.keep_fake else None
    ema = monitor.best.params if monitor.best else state.ema
    return ema if stage.roles.trained.base else landed(ema), fake, monitor.record


def _after(run: Run, stage: Stage) -> float:
    """Returns the images of the later stages over those of an iteration of this one."""
    later = (other for other in run.stages if other.index > stage.index and not other.finished)
    images = sum(other.spec.steps * other.batch_size * other.updates for other in later)
    return images / (stage.batch_size * stage.updates)


def _advice(stage: Stage, states: States, error: DivergedError) -> str:
    """Returns what diverged, the last good checkpoint, and what to do."""
    last = states.steps()
    good = (
        stage.directory / "states" / str(last[-1])
        if last
        else stage.teacher and stage.teacher.directory
    )
    kept = f"the last good checkpoint is {good}" if good else "nothing was saved before"
    return (
        f"stage {stage.name} diverged at {error}; {kept}; try a "
        f"smaller --config.stages.{stage.name}.learning_rate (now {stage.spec.learning_rate:g})"
    )
