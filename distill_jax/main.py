"""Trains the stages of a config and writes a report; the same command resumes a stopped run.

python -m distill_jax.main --config=configs/digits_guided.py
python -m distill_jax.main --config=configs/digits_guided.py --config.batch_size=256 --plan
"""

import os
import shlex
import time
from typing import Any

from absl import flags

from distill_jax.evaluation.pictures import prompts_of
from distill_jax.models.build import matmul_precision
from distill_jax.run import capacity, compilation, costs, devices, pipeline, plan
from distill_jax.run.caching import keep_programs
from distill_jax.run.lock import hold
from distill_jax.run.rehearsal import rehearse
from distill_jax.runtime import distributed, heartbeat, logging
from distill_jax.runtime.app import needed, run_app
from distill_jax.runtime.config_file import define_config
from distill_jax.runtime.files import absolute, default_workdir
from distill_jax.runtime.preemption import StopFlag
from distill_jax.runtime.trees import span
from distill_jax.sampling.loading import describe
from distill_jax.training.loop import StoppedError
from distill_jax.training.profiler import Profile

_CONFIG = define_config("Config file, FILE.py or FILE.py:size.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Output directory, by default runs/<config>.")
_RESUME = flags.DEFINE_enum(
    "resume", "auto", ["auto", "force"], "force: continue in a workdir of another config."
)
_ONLY = flags.DEFINE_list(
    "only", [], "Stages to train, such as s01_guided or guided; the others stay as they are."
)
_PLAN = flags.DEFINE_flag(
    flags.Flag(
        parser=flags.EnumParser(["true", "false", "compile"]),
        serializer=None,
        name="plan",
        default="false",
        help_string="Print the stages and their costs, and stop. --plan=compile adds the "
        "memory of the compiled updates.",
        boolean=True,  # So that --plan needs no value.
    )
)
_PLAN_FOR = flags.DEFINE_string(
    "plan_for",
    None,
    "--plan for other devices: COUNTxDEVICE, such as 64xv4, 8xh100@0.35 (the fraction of the peak "
    "that training reaches) or 8x2250 (the peak in TFLOP/s).",
)
_PROFILE = flags.DEFINE_string(
    "profile",
    None,
    "Iterations to trace for xprof: FIRST:LAST of the first stage that runs, such as 20:25, or "
    "STAGE@FIRST:LAST.",
)
_HEARTBEAT = flags.DEFINE_string(
    "heartbeat", None, "Local file to touch at each sign of progress, for probes of launchers."
)
_STALL_MINUTES = flags.DEFINE_float(
    "stall_minutes",
    0.0,
    "End with exit code 75 after so many minutes without progress, 0 never. Longer than the "
    "longest compilation.",
    lower_bound=0.0,
)
_REHEARSE = flags.DEFINE_bool(
    "rehearse",
    True,
    "At the start, trace every loss and sampler, and check the room on the disk.",
)
flags.FLAGS["plan"].default_as_str = "'false'"  # Otherwise --help shows the default as true.
distributed.define_flags()


def main() -> int:
    """Trains, reports, and returns the exit code: 0, or 128 + n if signal n stopped the run."""
    needed("config", ", such as --config=configs/digits_guided.py")
    profile = Profile.parse(_PROFILE.value) if _PROFILE.value else None
    began = time.monotonic()
    distributed.join()
    file = flags.FLAGS["config"].config_filename  # type: ignore[attr-defined]  # A config flag.
    workdir = absolute(_WORKDIR.value or default_workdir(file))
    where = devices.target(_PLAN_FOR.value)
    run = plan.make(_CONFIG.value, workdir, where.count)
    logging.show(plan.show(run))
    if _PLAN.value != "false" or _PLAN_FOR.value:
        return _show_costs(run, where)
    whole, run = run, plan.only(run, _ONLY.value)
    keep_programs()
    heartbeat.watch(_HEARTBEAT.value, _STALL_MINUTES.value)
    stop = StopFlag().install()
    try:
        with hold(workdir) as lock:
            if _REHEARSE.value:
                rehearse(run)
            ideal = _ideal_seconds(run, where)
            trained = pipeline.run(run, stop, _RESUME.value == "force", profile, ideal)
            missing = [stage.name for stage in whole.stages if not stage.finished]
            reported = not missing and pipeline.report(whole, stop, lock)
    except (StoppedError, InterruptedError, KeyboardInterrupt) as error:
        logging.say(f"{str(error) or 'stopped'}. The same command goes on from there.")
        return 128 + (stop.signal or 2)
    report = workdir / "report.md"
    shown = str(report) if report.exists() else "none, because the data have no images"
    shown = f"none before {span(missing)} is finished" if missing else shown
    if not (trained or reported):
        done = ", ".join(_ONLY.value) if missing else workdir
        logging.say(f"nothing left to do: {done} is complete; report: {shown}")
        return 0
    cpu = os.times()
    seconds = time.monotonic() - began
    logging.say(f"done in {seconds:.0f} s ({cpu.user + cpu.system:.0f} CPU-seconds)")
    logging.say(f"  report   {shown}")
    if report.exists():
        logging.say(f"  page     {workdir / 'report.html'}")
    logging.say(f"  student  {run.stages[-1].directory}")
    logging.say(f"  sample   {_sample_command(run)}")
    return 0


def _sample_command(run: plan.Run) -> str:
    """Returns the command that draws from the last stage at the middle w, whole, to be pasted."""
    last = run.stages[-1]
    given: dict[str, list[Any]] = {"student": [last.directory]}
    if w_range := last.trained.guidance.w_range:
        given["w"] = [f"{sum(w_range) / 2:g}"]
    given["prompt"] = prompts_of(last.directory / "grid.png")[:1]
    for name, fit in (("codec", run.codec), ("conditioner", run.conditioner)):
        if fit is not None and not fit.directory.is_relative_to(run.workdir):
            given[name] = [fit.directory]
    given["allow"] = [*describe(last.directory, allow=run.allow).manifest.imports]
    words = [f"--{name}={value}" for name, values in given.items() for value in values]
    return shlex.join(["python", "-m", "distill_jax.sample", *words])


def _ideal_seconds(run: plan.Run, where: devices.Target) -> dict[str, float]:
    """Returns the seconds of an iteration at the devices' peak, by stage; {} if it is unknown."""
    if where.peak is None:
        return {}
    peak = where.count * where.peak * 1e12
    return {name: sum(cost.flops) / peak for name, cost in costs.measure(run).items()}


def _show_costs(run: plan.Run, where: devices.Target) -> int:
    """Prints the costs of the run, and returns the exit code 0."""
    compiling = _PLAN.value == "compile"
    if compiling:
        compilation.check(run)
    measured = costs.measure(run)
    texts = costs.show(run, measured, where), *capacity.show(run, measured)
    logging.show("\n" + "\n".join(texts))
    if compiling:
        with matmul_precision(run.config.matmul_precision):
            logging.show("\n" + compilation.show(run, measured))
    return 0


if __name__ == "__main__":
    run_app(main)
