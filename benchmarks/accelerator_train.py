"""Trains cifar10_guided within a time limit, and evaluates its networks so far."""

import dataclasses
import itertools
import json
import os
import shutil
import time

import jax
import numpy as np
from etils import epath

from benchmarks.accelerator_update import load_config
from distill_jax.config import base, stage
from distill_jax.config import pipeline as chain
from distill_jax.evaluation import compare
from distill_jax.run import costs, devices, pipeline, plan
from distill_jax.run.finish import finish
from distill_jax.run.lock import hold
from distill_jax.runtime import logging
from distill_jax.runtime.preemption import StopFlag
from distill_jax.storage.states import States
from distill_jax.training.loop import StoppedError

SHOWN = ("loss", "updates_per_second", "images_per_second", "mfu", "input_seconds")
SAVE_EVERY = 1000  # A kill costs less than a minute on an accelerator; presets have 10,000.


class Deadline:
    """A check whether to stop: the time is up, or a signal came."""

    def __init__(self, seconds):
        self._end, self.stopped = time.monotonic() + seconds, lambda: False

    def __call__(self):
        return self.stopped() or time.monotonic() >= self._end


def make_run(size, data_dir, workdir):
    """Returns the run: a size of cifar10_guided, or for "smoke" a run on points in seconds."""
    if size == "smoke":
        config = base()
        config.data.name = "mixture"
        config.model.update(name="mlp", width=8, blocks=1)
        config.update(batch_size=8, log_every=1, save_every=2)
        config.evaluate.update(w=(0.0,), num_samples=8)
        rates = {"steps": 3, "learning_rate": 1e-3, "num_steps": 2}
        config.stages = chain(stage("teacher", "diffusion", **rates))
    else:
        config = load_config("cifar10_guided", size)
        config.data.data_dir, config.save_every = data_dir, min(SAVE_EVERY, config.save_every)
    return plan.make(config, workdir)


def train(size, data_dir, workdir, seconds):
    """Continues the run for `seconds`, with compilation, and saves its state."""
    deadline, run = Deadline(seconds), make_run(size, data_dir, workdir)
    if size != "smoke":  # Tests run this in their process, whose signal handlers must stay.
        deadline.stopped = StopFlag().install()
    run.workdir.mkdir(parents=True, exist_ok=True)
    where, ideal = devices.target(None), {}
    if where.peak:
        peak = where.count * where.peak * 1e12
        ideal = {name: sum(cost.flops) / peak for name, cost in costs.measure(run).items()}
    try:
        pipeline.run(run, deadline, ideal=ideal)
    except (StoppedError, InterruptedError) as error:
        logging.say(str(error))
    return progress(run)


def progress(run):
    """Returns how far the run got, and medians of the newest lines of its log."""
    begun = [stage for stage in run.stages if (stage.directory / "scalars.jsonl").exists()]
    if not begun:
        return {"stage": run.stages[0].name, "done": 0, "of": run.stages[0].spec.steps}
    newest, total = begun[-1], sum(stage.spec.steps for stage in run.stages)
    text = (newest.directory / "scalars.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    before = sum(stage.spec.steps for stage in begun[:-1])
    done = lines[-1]["step"] if lines else 0
    row = {"stage": newest.name, "done": done, "of": newest.spec.steps}
    row.update(all_done=before + done, all_of=total)
    found = {name: [line[name] for line in lines[-20:] if name in line] for name in SHOWN}
    return {**row, **{name: float(np.median(values)) for name, values in found.items() if values}}


def draw(size, data_dir, workdir, out):
    """Writes grids and the report of finished stages, and of the newest state of an unfinished one.

    An unfinished stage is written to the folder `out` as if it had ended there, beside links to
    the networks of those that are finished, and the report is made in that folder.
    """
    run = make_run(size, data_dir, workdir)
    out = epath.Path(out)
    shutil.rmtree(out, ignore_errors=True)  # Networks of an earlier call; links are not followed.
    out.mkdir(parents=True)
    finished = list(itertools.takewhile(lambda stage: stage.finished, run.stages))
    for each in finished:
        (out / each.name).mkdir()
        os.symlink(each.directory / "final", out / each.name / "final")
    unfinished = run.stages[len(finished) :][:1]
    reached = [each for each in unfinished if so_far(run, each, out / each.name)]
    found = [dataclasses.replace(each, directory=out / each.name) for each in finished + reached]
    if not found:
        return {"networks": []}
    with hold(out) as lock:
        pipeline.draw_grids(dataclasses.replace(run, stages=tuple(found)), lambda: False, lock)
    data, settings = run.config.data.to_dict(), run.config.evaluate.to_dict()
    compare.write_report(out, data, settings, lambda: False)
    return {"networks": [each.name for each in found]}


def so_far(run, stage, directory):
    """Writes the newest state of a stage as a finished network; returns whether there is one."""
    states = States(stage.directory / "states", run.config.keep)
    _, _, like, _, _ = costs.arguments(run, stage)
    state = states.restore(like, logging.say)
    states.close()
    if state is None:
        return False
    spec = stage.spec.copy_and_resolve_references()
    spec.steps = int(state.step)
    there = dataclasses.replace(stage, directory=directory, spec=spec)
    finish(run, there, state.ema, None)
    jax.block_until_ready(state)
    return True
