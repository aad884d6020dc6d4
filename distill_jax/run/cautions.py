"""Warnings about a plan that can run, and whose result may not be what was meant."""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from ml_collections import ConfigDict

from distill_jax.diffusion.schedule import Schedule
from distill_jax.run.stages import Stage
from distill_jax.runtime.logging import counted
from distill_jax.runtime.trees import span

MAX_SHARE = 0.05  # Of the first parameters in the EMA that a stage ends with.
FEW = 8  # Steps of a sampler whose first call decides much of the image.
MAX_SIGNAL = 0.03  # alpha / sigma that pure noise may stand for.


def cautions(config: ConfigDict, stages: Sequence[Stage]) -> list[str]:
    """Returns a line for each doubtful setting: EMA, warm-up, and heads that lose precision."""
    found = *_ema(stages), *_warmup(stages), *_rounding(config, stages), *_ends(config, stages)
    return [f"warning: {line}" for line in found]


def _ema(stages: Sequence[Stage]) -> Iterator[str]:
    """Warns of EMAs that are longer than their stage: what is kept has hardly been trained."""
    shares = {stage.name: stage.rates.initial_share(_updates(stage)) for stage in stages}
    long = [stage for stage in stages if shares[stage.name] > MAX_SHARE]
    if long:
        worst = max(long, key=lambda stage: shares[stage.name])
        updates, names = _updates(worst), span([stage.name for stage in long])
        decay = f"{0.01 ** (1 / updates):.{max(3, len(str(updates)))}g}"  # 0.99977 is not 1.
        yield (
            f"the EMA of {names} keeps up to {shares[worst.name]:.0%} of the weights that a stage "
            f"starts from, with decay {worst.spec.ema_decay:g} over "
            f"{counted(updates, 'update')}; take more steps, ema_decay={decay} "
            "or less, or ema_ramp=0.05"
        )


def _updates(stage: Stage) -> int:
    """Returns the number of updates of the student."""
    phases = (phase for phase in stage.method.phases if phase.trains == "student")
    return stage.spec.steps * sum(phase.updates_per_iteration for phase in phases)


def _warmup(stages: Sequence[Stage]) -> Iterator[str]:
    """Warns of warm-ups that do not end."""
    short = [stage for stage in stages if stage.spec.warmup > stage.spec.steps]
    if short:
        spec, names = short[0].spec, span([stage.name for stage in short])
        yield (
            f"the warm-up of {names} does not end: it takes {spec.warmup:,} iterations, and "
            f"{short[0].name} has {spec.steps:,}"
        )


def _rounding(config: ConfigDict, stages: Sequence[Stage]) -> Iterator[str]:
    """Warns of losses that amplify the rounding of a low precision."""
    head = config.parameterization
    names = [stage.name for stage in stages if stage.model.get("dtype", "float32") != "float32"]
    if head in ("x", "both") and names:
        yield (
            f"the network of {', '.join(names)} computes in bfloat16 and predicts x "
            f"(parameterization {head!r}), whose rounding the losses multiply by up to the signal-"
            "to-noise ratio: take 'v', or dtype='float32'"
        )


def _ends(config: ConfigDict, stages: Sequence[Stage]) -> Iterator[str]:
    """Warns of few-step students whose first call is on noise that they cannot draw from."""
    few = [s for s in stages if s.method.needs_teacher and s.trained.num_steps <= FEW]
    first = {stage.name: max(map(float, stage.trained.sampler.times)) for stage in few}
    schedule = stages[-1].roles.student.schedule
    signals = {name: _signal(schedule, t) for name, t in first.items()}
    pure = [name for name, t in first.items() if t == 1 and signals[name] > MAX_SIGNAL]
    blind = [name for name, signal in signals.items() if signal <= MAX_SIGNAL]
    if pure:
        yield (
            f"{span(pure)} begin from pure noise, and are trained on noise with a signal of "
            f"{signals[pure[0]]:.2g}, where the schedule ends: set config.schedule.zero_snr=True "
            "and parameterization 'v', and fine-tune the teacher in a diffusion stage before"
        )
    elif blind and config.parameterization == "eps":
        yield (
            f"{span(blind)} predict eps, which says nothing about the image where the noise is "
            "pure, or nearly, at their first call: take parameterization 'v', and fine-tune the "
            "teacher in a diffusion stage before"
        )


def _signal(schedule: Schedule, t: float) -> float:
    """Returns alpha / sigma at a time."""
    time = jnp.asarray(t)
    return float(schedule.alpha(time) / schedule.sigma(time))
