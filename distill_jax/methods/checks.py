"""What the numbers of methods must satisfy, each with one message."""

import itertools
from typing import Any

import numpy as np

from distill_jax.diffusion.levels import LEVELS
from distill_jax.diffusion.trained import Sampler, Trained, name_of
from distill_jax.diffusion.weighting import WEIGHTINGS
from distill_jax.methods.base import Method


def check_steps(num_steps: Any) -> None:
    """Raises ValueError unless num_steps is a whole number from 1."""
    if not isinstance(num_steps, (int, np.integer)) or num_steps < 1:
        raise ValueError(
            f"num_steps is {num_steps}; a sampler takes a whole number of steps from 1"
        )


def check_w_range(w_range: Any) -> None:
    """Raises ValueError unless w_range is (low, high) with 0 <= low <= high."""
    pair = isinstance(w_range, (tuple, list)) and len(w_range) == 2
    if not pair or not 0 <= w_range[0] <= w_range[1]:
        raise ValueError(
            f"w_range is {w_range}; expected (smallest, largest) with "
            "0 <= smallest <= largest, for w = 0 is the model without guidance"
        )


def check_probability(name: str, value: float) -> None:
    """Raises ValueError unless the value lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; expected a probability in [0, 1]")


def check_round(method: Method, kind: type[Sampler], teacher: Trained, factor: int = 2) -> None:
    """Raises ValueError unless the teacher makes `factor` steps of each of the method's, at its w.

    The teacher has a sampler of the same kind, or was trained at all times.
    """
    n, other = method.num_steps, type(teacher.sampler)
    check_steps(n)
    if not teacher.all_times and (other != kind or teacher.num_steps != factor * n):
        raise ValueError(
            f"a student of {n} {name_of(kind)} steps needs a teacher of {factor * n}, or one that "
            "was trained at all times, such as the guided stage; this teacher has "
            f"{teacher.num_steps} {name_of(other)} steps"
        )
    check_input_w(method, teacher)


def check_input_w(method: Method, teacher: Trained) -> None:
    """Raises ValueError unless the method takes w exactly where its teacher does, in its range."""
    theirs = teacher.guidance.w_range
    if (method.w_range is None) != (theirs is None):
        raise ValueError(
            f"w_range is {method.w_range}, the teacher's {theirs}; a student keeps "
            "its teacher's input w: give w_range exactly when the teacher was trained with one"
        )
    if method.w_range is None:
        return
    check_w_range(method.w_range)
    if method.w_range[0] < theirs[0] or method.w_range[1] > theirs[1]:
        raise ValueError(
            f"w_range {tuple(method.w_range)} leaves the teacher's {tuple(theirs)}; stay inside it"
        )


def check_weighting(weighting: str) -> None:
    """Raises ValueError for an unknown weighting."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}; known: {', '.join(WEIGHTINGS)}")


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Raises ValueError unless the value is a known one."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}; known: {', '.join(known)}")


def check_number(name: str, value: float | int, low: float | int, high: float | int) -> None:
    """Raises ValueError unless low <= value <= high."""
    if not low <= value <= high:
        raise ValueError(f"{name} is {value}; expected a number from {low:g} to {high:g}")


def check_times(times: tuple[float, ...]) -> None:
    """Raises ValueError unless the times of calls lie in (0, 1] and fall."""
    falls = all(t > s for t, s in itertools.pairwise((*times, 0.0)))
    if not falls or max(times, default=1.0) > 1:
        raise ValueError(
            f"times are {times}; expected times in (0, 1] that fall, such as (1.0, 0.75, 0.5)"
        )


def check_levels(name: str, levels: tuple) -> None:
    """Raises ValueError unless levels are (a name in LEVELS, lowest level, highest level)."""
    if len(levels) != 3 or not 0 < levels[1] <= levels[2] < float("inf"):
        raise ValueError(
            f"{name} are {levels}; expected (law, lowest, highest) with noise levels "
            "sigma / alpha, 0 < lowest <= highest"
        )
    if levels[0] not in LEVELS:
        raise ValueError(f"{name} are {levels}; known laws: {', '.join(LEVELS)}")


def check_all_times(teacher: Trained) -> None:
    """Raises ValueError unless the teacher was trained at all times."""
    if not teacher.all_times:
        raise ValueError(
            f"the teacher was trained at the times of its {teacher.num_steps} steps only, and this "
            "method calls it at all times; name one that was trained at all, such as a diffusion "
            "stage"
        )


def check_teacher_steps(teacher: Trained, count: int, solver: str) -> None:
    """Raises ValueError unless a step of the solver is one of the teacher's own; 0: at any time."""
    on_grid = teacher.uses_ddim and (count, solver) == (teacher.num_steps, "euler")
    if count if teacher.all_times else not on_grid:
        known = "all times" if teacher.all_times else f"its {teacher.num_steps} steps only"
        raise ValueError(
            f"teacher_steps is {count}, solver {solver!r}, and the teacher was trained at {known}; "
            "expected 0 for all times, else their number and 'euler', of a teacher that DDIM "
            "samples"
        )


def check_takes_no_w(teacher: Trained) -> None:
    """Raises ValueError for a teacher that has guidance in its weights."""
    if teacher.guidance.w_range is not None:
        raise ValueError(
            f"the teacher already takes w in {tuple(teacher.guidance.w_range)}: guiding it would "
            "guide twice; name the unguided teacher, or take a method that keeps the input w"
        )


def check_x(method: Method, teacher: Trained) -> None:
    """Raises ValueError where the method needs the teacher's x as it is, and that is clipped.

    A stage with clip_target is taught nothing of an x beyond the bounds but its sign.
    """
    if teacher.saturated and not method.clip_target:
        raise ValueError(
            "the teacher was trained with clip_target=True: its x is right within [-1, 1] alone, "
            "and this method takes it as it is; train that stage with clip_target=False"
        )


def check_has_null(teacher: Trained) -> None:
    """Raises ValueError for a teacher that has no null condition to guide against."""
    if not teacher.guidance.null:
        raise ValueError(
            "the teacher was trained with label_dropout=0, so it has no null condition to "
            "guide against. Fine-tune it in a stage before this one: "
            'stage("finetune", "diffusion", teacher="DIRECTORY", label_dropout=0.1, '
            "steps=20000, learning_rate=1e-4), and let this one take its teacher from there. A "
            "teacher that has no labels learns them there, if `new` names its module for them, "
            'such as new=("class_emb",)'
        )


def check_kappas(kappas: tuple[float, ...], teacher: Trained) -> None:
    """Raises ValueError unless kappas are four positive scales, 1 where the teacher has no null."""
    if len(kappas) != 4 or min(kappas) <= 0:
        raise ValueError(f"kappas are {kappas}; expected one positive number, or four")
    if set(kappas) != {1}:
        check_takes_no_w(teacher)
        check_has_null(teacher)


def check_fake_updates(count: int) -> None:
    """Raises ValueError unless the fake is updated a whole number of times, from 1."""
    if count != int(count) or count < 1:
        raise ValueError(f"fake_updates is {count}; expected a whole number from 1")


def check_matching(method: Method, teacher: Trained) -> None:
    """Raises ValueError for numbers of a method with a fake that make no sense, or its teacher."""
    check_steps(method.num_steps)
    check_all_times(teacher)
    check_weighting(method.weighting)
    check_levels("levels", method.levels)
    check_levels("fake_levels", method.fake_levels)
    check_fake_updates(method.fake_updates)
    if not 0 < method.sigma_init < float("inf"):
        raise ValueError(f"sigma_init is {method.sigma_init}; expected a noise level, such as 2.5")
    check_x(method, teacher)
