"""The measurements of stages in training: how many, at which w, and their network calls."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from ml_collections import ConfigDict

from distill_jax.run.stages import Stage
from distill_jax.runtime.logging import counted
from distill_jax.sampling.batched import repeats
from distill_jax.sampling.conditioners import Labels


def measured(evaluate: ConfigDict, stages: Sequence[Stage]) -> list[Stage]:
    """Returns the stages that are measured in training; an encoder draws no samples."""
    return [stage for stage in stages if evaluate.every and stage.trained.sampler.decodes]


def count(evaluate: ConfigDict, stage: Stage) -> int:
    """Returns the number of measurements: every `every` iterations, and after the last."""
    return math.ceil(stage.spec.steps / evaluate.every)


def strength(evaluate: ConfigDict, stage: Stage) -> float | None:
    """Returns the w of a stage's measurements; None if no w can be chosen.

    It is the middle, or the lower of two, of those in config.evaluate.w that the stage knows.
    """
    low, high = stage.trained.guidance.w_range or (0.0, math.inf)
    conditional = bool(stage.roles.student.spec.data.null)
    if stage.trained.guidance.w_range is None and not (conditional and stage.trained.guidance.null):
        return None
    known = sorted(w for w in evaluate.w if low <= w <= high) or [low]
    return float(known[(len(known) - 1) // 2])


def calls(evaluate: ConfigDict, stage: Stage) -> int:
    """Returns the network calls per sample: twice as many for guidance outside the network."""
    guided = strength(evaluate, stage) is not None and stage.trained.guidance.w_range is None
    return stage.trained.calls * (2 if guided else 1)


def drawn(evaluate: ConfigDict, stage: Stage) -> int:
    """Returns the samples of a measurement: `few`, and those that are added for diversity.

    Prompts are counted as if none were repeated.
    """
    data = stage.roles.student.spec.data
    classes = Labels(data).classes or (evaluate.few if data.null else 1)
    return int(evaluate.few + len(repeats(np.arange(evaluate.few) % classes)))


def show(evaluate: ConfigDict, stages: Sequence[Stage]) -> Iterator[str]:
    """Yields a line with the samples and network calls of the measurements in training."""
    if found := measured(evaluate, stages):
        numbers = [count(evaluate, stage) for stage in found]
        total = sum(
            n * calls(evaluate, stage) * drawn(evaluate, stage)
            for n, stage in zip(numbers, found, strict=True)
        )
        best = f"; final/ keeps the best by {evaluate.keep_best}" if evaluate.keep_best else ""
        yield (
            f"measured in training every {counted(evaluate.every, 'iteration')}: "
            f"{counted(sum(numbers), 'time')} {evaluate.few:,} samples, "
            f"{total:,} network calls{best}"
        )
