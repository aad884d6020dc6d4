"""Checks of a finished network without training: its description, predictions and samples."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from clu.parameter_overview import get_parameter_overview

from distill_jax.diffusion.schedule import add_noise, expand
from distill_jax.diffusion.spec import is_point
from distill_jax.sampling.codecs import PIXELS
from distill_jax.sampling.student import Student

TIMES = (0.05, 0.3, 0.6, 0.95)
PROMPTS = ("a cat on a sofa", "a red car in a street", "a bowl of fruit", "mountains at sunset")
W = 6.5  # Of prompts: what diffusers calls a guidance_scale of 7.5.


def describe(student: Student) -> str:
    """Returns the arrays of a student, its architecture, schedule, guidance and source as text."""
    manifest = student.manifest
    model = {key: value for key, value in manifest.model.items() if key != "name"}
    options = ", ".join(f"{key} {value}" for key, value in model.items())
    source = manifest.lineage.source or {"stage": manifest.stage}
    times = "all times" if student.trained.all_times else "the times of its steps only"
    return "\n".join(
        (
            get_parameter_overview(student.merged.params, include_stats=False),
            "",
            f"network          {manifest.model['name']}: {options}",
            f"images           {'x'.join(map(str, student.shape))}, {conditions(student)}",
            f"parameterization {manifest.parameterization}",
            f"schedule         {student.network_spec.schedule}",
            f"steps            {student.trained.num_steps:,}; trained at {times}",
            f"guidance         {guidance(student)}",
            f"source           {', '.join(f'{key} {value}' for key, value in source.items())}",
        )
    )


def conditions(student: Student) -> str:
    """Returns the number of classes, or the other conditions with their shapes, as text."""
    others = [
        f"{name} {'x'.join(map(str, leaf.shape))}"
        for name, leaf in student.manifest.spec.cond
        if name not in ("label", "text_mask")
    ]
    return ", ".join(others) or f"{student.num_classes or 'no'} classes"


def guidance(student: Student) -> str:
    """Returns in words whether the network can be guided, and if not, why."""
    if student.takes_w:
        return "an input of the network"
    if student.can_be_guided:
        return "possible: it was trained with label dropout"
    if not student.num_classes:
        return "impossible: it has no labels"
    return "impossible: it was trained without label dropout; fine-tune it, see docs/teachers.md"


def deviation(student: Student, key: jax.Array) -> float:
    """Returns the largest |z - alpha x - sigma eps| / max(1, |z|) of predictions at a few times.

    Raises:
      ValueError: if a prediction is not finite.
    """
    k_x, k_eps = jax.random.split(key)
    t = jnp.asarray(TIMES)
    x = jnp.clip(jax.random.normal(k_x, (len(TIMES), *student.shape)) / 2, -1, 1)
    z = add_noise(student.network_spec.schedule, x, jax.random.normal(k_eps, x.shape), t)
    _, _, cond = student.network_spec.spec.example(student.trained.inputs, len(TIMES))
    predict = jax.jit(lambda params: student.network_spec(params)(z, t, cond))
    x_hat, eps_hat = predict(student.params)
    if not (np.isfinite(x_hat).all() and np.isfinite(eps_hat).all()):
        raise ValueError("the network's predictions are not finite; its parameters are damaged")
    schedule = student.network_spec.schedule
    rebuilt = expand(schedule.alpha(t), z) * x_hat + expand(schedule.sigma(t), z) * eps_hat
    return float(jnp.max(jnp.abs(z - rebuilt) / jnp.maximum(1, jnp.abs(z))))


def lacks(student: Student) -> str:
    """Returns in words what a network lacks to draw samples; "" if it can draw them."""
    latents = not (student.manifest.spec.bounded or is_point(student.shape))
    if latents and student.codec is PIXELS:
        return "it needs the autoencoder of its pipeline, and the text encoder: --pipeline=DIR"
    return ""


def draw(student: Student, num: int, num_steps: int, prompts: Sequence[str]) -> np.ndarray:
    """Draws `num` images, with the classes or prompts in turn.

    A teacher takes at most `num_steps` steps, and with prompts the guidance strength W.
    """
    own = student.trained.num_steps
    steps = min(num_steps, own) if student.trained.all_times else own
    given = list(itertools.islice(itertools.cycle(prompts), num)) if student.takes_prompts else None
    w = W if given and student.can_be_guided else None
    return np.asarray(student.sample(jax.random.key(0), num, given, w, num_steps=steps))
