"""Validation of the options of methods and of their teachers, each with one message.

A method declares a rule with each of its fields (runtime.options). Rules about several options or
about the teacher are functions in this file, which a method lists in its `needs`.
"""

from typing import Any

from distill_jax.diffusion.noise_levels import NOISE_LEVELS
from distill_jax.diffusion.trained import RESOLUTIONS as RESOLUTIONS  # Methods take it from here.
from distill_jax.diffusion.trained import TIMES as TIMES  # The same.
from distill_jax.diffusion.trained import Sampler, Trained, name_of
from distill_jax.diffusion.weighting import WEIGHTINGS
from distill_jax.methods.base import Method
from distill_jax.runtime.options import (
    MAX_STEPS,
    MAX_W,
    Rule,
    both,
    choice,
    every,
    is_sequence,
    number,
    whole,
)


def _is_range(value: Any) -> bool:
    """Returns whether a value is a pair (low, high) with 0 <= low <= high <= MAX_W."""
    return is_sequence(value) and len(value) == 2 and 0 <= value[0] <= value[1] <= MAX_W


def _is_noise(levels: tuple) -> bool:
    """Returns whether `levels` is (a name in NOISE_LEVELS, lowest level, highest level)."""
    name, low, high = levels
    return name in NOISE_LEVELS and LEVEL.holds(low) and LEVEL.holds(high) and low <= high


def _is_kappas(kappas: Any) -> bool:
    """Returns whether `kappas` is one positive number or four."""
    four = kappas if is_sequence(kappas) else (kappas,) * 4
    return len(four) == 4 and all(map(number(0, MAX_W, without=(0,)).holds, four))


COUNT = whole(1, high=MAX_STEPS)
UPDATES = whole(1, high=1000)  # Of the fake in an iteration.
POSITIVE = number(0, 1e6)  # Weights of losses.
STRENGTH = number(0, MAX_W)  # Guidance strengths.
SIGNED_STRENGTH = number(-1, MAX_W)
PROBABILITY = number(0, 1)
WEIGHTING = choice(WEIGHTINGS)
LABELS = every(whole(0), 1000)
W_RANGE = both(
    every(number(-MAX_W, MAX_W), 2),
    Rule(
        _is_range,
        f"(smallest, largest) with 0 <= smallest <= largest <= {MAX_W:g}; w = 0 is the model "
        "without guidance",
    ),
)
LEVEL = number(1e-6, 1e6)._replace(
    expected="a noise level sigma / alpha from 1e-6 to 1e6, such as 2.5"
)
NOISE = Rule(
    _is_noise,
    "(distribution, lowest, highest) with noise levels sigma / alpha, 0 < lowest <= highest, and a "
    f"distribution out of {', '.join(NOISE_LEVELS)}",
)
KAPPAS = Rule(_is_kappas, "one positive number, or four")


def makes_round(method: Method, kind: type[Sampler], teacher: Trained, factor: int = 2) -> None:
    """Raises ValueError unless the teacher has `factor` steps for each step of the student.

    The teacher must have a sampler of the same kind, or be trained at all times, and take the same
    input w.
    """
    n, other = method.num_steps, type(teacher.sampler)
    if not teacher.all_times and (other != kind or teacher.num_steps != factor * n):
        raise ValueError(
            f"a student of {n} {name_of(kind)} steps needs a teacher of {factor * n}, or one that "
            "was trained at all times, such as the guided stage; this teacher has "
            f"{teacher.num_steps} {name_of(other)} steps"
        )
    keeps_w(method, teacher)


def keeps_w(method: Method, teacher: Trained) -> None:
    """Raises ValueError unless the student takes w exactly if its teacher does, in its range."""
    mine, theirs = method.w_range, teacher.guidance.w_range
    if (mine is None) != (theirs is None):
        raise ValueError(
            f"w_range is {mine}, the teacher's {theirs}; a student keeps "
            "its teacher's input w: give w_range exactly when the teacher was trained with one"
        )
    if mine is not None and not theirs[0] <= mine[0] <= mine[1] <= theirs[1]:
        raise ValueError(f"w_range {tuple(mine)} leaves the teacher's {tuple(theirs)}; stay inside")


def all_times(method: Method, teacher: Trained) -> None:
    """Raises ValueError unless the teacher was trained at all times."""
    if not teacher.all_times:
        raise ValueError(
            f"the teacher was trained at the times of its {teacher.num_steps} steps only, and this "
            "method calls it at all times; name one that was trained at all times, such as a "
            "diffusion stage"
        )


def teacher_steps(method: Any, teacher: Trained) -> None:
    """Raises ValueError unless the teacher was trained at the times that the solver steps between.

    A count of 0 stands for steps at any time.
    """
    count, solver = method.teacher_steps, method.solver
    on_grid = teacher.uses_ddim and (count, solver) == (teacher.num_steps, "euler")
    if count if teacher.all_times else not on_grid:
        known = "all times" if teacher.all_times else f"its {teacher.num_steps} steps only"
        raise ValueError(
            f"teacher_steps is {count}, solver {solver!r}, and the teacher was trained at {known}; "
            "expected 0 for all times, else the teacher's number of DDIM steps and 'euler'"
        )


def takes_no_w(method: Method, teacher: Trained) -> None:
    """Raises ValueError for a teacher that takes w as an input."""
    if teacher.guidance.w_range is not None:
        raise ValueError(
            f"the teacher already takes w in {tuple(teacher.guidance.w_range)}: guiding it would "
            "guide twice; name the unguided teacher, or take a method that keeps the input w"
        )


def exact_x(method: Method, teacher: Trained) -> None:
    """Raises ValueError if the method needs an unclipped x, and the teacher learned a clipped one.

    A network trained with clip_target learns only the sign of an x outside [-1, 1].
    """
    if teacher.saturated and not method.clip_target:
        raise ValueError(
            "the teacher was trained with clip_target=True: its x is right within [-1, 1] only, "
            "and this method does not clip it; train that stage with clip_target=False"
        )


def has_null(method: Method, teacher: Trained) -> None:
    """Raises ValueError if the method guides a teacher without a null condition."""
    if method.guides and not teacher.guidance.null:
        raise ValueError(
            "the teacher was trained with label_dropout=0, so it has no null condition to "
            "guide against. Fine-tune it in a stage before this one: "
            'stage("finetune", "diffusion", teacher="DIRECTORY", label_dropout=0.2, '
            "steps=100000, learning_rate=1e-4), with about a quarter of the updates that trained "
            "it, at its learning rate; and let this one take its teacher from there. A teacher "
            "that has no labels learns them there, if `new` names its module for them, such as "
            'new=("class_emb",)'
        )


def kappas(method: Any, teacher: Trained) -> None:
    """Raises ValueError unless the teacher can be guided where a kappa is not 1."""
    if set(method.scales) != {1}:
        takes_no_w(method, teacher)
        has_null(method, teacher)


def one_set_of_calls(method: Any, teacher: Trained) -> None:
    """Raises ValueError for both `times` and a number of repeated calls."""
    if method.times and method.num_steps != 1:
        raise ValueError(
            f"num_steps is {method.num_steps} and times {method.times}: the calls of the student "
            "are those of times; leave num_steps out"
        )


def matching(method: Method, teacher: Trained) -> None:
    """Raises ValueError for a teacher that a method with a fake network cannot follow."""
    all_times(method, teacher)
    exact_x(method, teacher)


def source(method: Any, teacher: Trained) -> None:
    """Raises ValueError for a consistency model that would guide the data."""
    if method.source == "data" and method.guides:
        raise ValueError(
            f"source is 'data', w {method.w} and w_range {method.w_range}: only a teacher can be "
            "guided; leave out w and w_range, or take source='teacher'"
        )
    if method.w and method.w_range:
        raise ValueError(f"w is {method.w} and w_range {method.w_range}; expected one of them")


def discriminator(method: Any, teacher: Trained | None = None) -> None:
    """Raises ValueError for a discriminator that is used and not trained."""
    if method.gan_weight and not method.discriminator_weight:
        raise ValueError(
            f"gan_weight is {method.gan_weight} and discriminator_weight 0: nothing would train "
            "the discriminator; give both a weight, or neither"
        )


def scales(method: Any, teacher: Trained) -> None:
    """Raises ValueError for an Swd whose options, or teacher, do not fit each other."""
    times, resolutions = method.times, method.resolutions
    if not times or len(resolutions) not in (0, len(times)):
        raise ValueError(
            f"times are {times} and resolutions {resolutions}; expected a time for each step, and "
            "as many resolutions or none"
        )
    if not (method.dmd_weight or method.gan_weight or method.mmd_weight):
        raise ValueError("dmd_weight, gan_weight and mmd_weight are 0; expected a term that is on")
    if method.w and not method.dmd_weight:
        raise ValueError(f"w is {method.w}; expected 0 without DMD, the only term that uses it")
    mine = tuple(sorted({*resolutions}))
    missing = sorted({*mine} - {*teacher.resolutions})
    if method.dmd_weight and missing and (teacher.resolutions or len(mine) > 1):
        raise ValueError(
            f"resolutions are {resolutions}, the teacher's "
            f"{teacher.resolutions or 'those of its data only'}: DMD calls it at "
            f"{', '.join(map(str, missing))} too. Train the teacher with "
            f'stage("teacher", "diffusion", resolutions={mine}, ...), or leave DMD out with '
            "dmd_weight=0"
        )
