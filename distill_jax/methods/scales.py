"""What the sizes of methods must satisfy that train on images of several, each with one message."""

import itertools

from distill_jax.diffusion.kernels import KERNELS
from distill_jax.methods.base import Method
from distill_jax.methods.checks import (
    check_all_times,
    check_has_null,
    check_steps,
    check_takes_no_w,
    check_times,
)

TERMS = ("dmd_weight", "gan_weight", "mmd_weight")
RANGES = ("dmd_range", "mmd_range", "fake_range")


def check_sides(sides: tuple[int, ...]) -> None:
    """Raises ValueError unless sides are whole numbers from 1 that do not shrink."""
    whole = all(side == int(side) and side >= 1 for side in sides)
    if not whole or any(a > b for a, b in itertools.pairwise(sides)):
        raise ValueError(
            f"sides are {sides}; expected whole numbers from 1 that do not shrink, such as (4, 8)"
        )


def check_scale_wise(method: Method, teacher: Method) -> None:
    """Raises ValueError for an Swd whose numbers make no sense, or whose teacher does not fit."""
    _check_steps(method)
    _check_terms(method)
    check_all_times(teacher)
    check_takes_no_w(teacher)
    if method.guides:
        check_has_null(teacher)
    missing = sorted({*method.sides} - {*teacher.sides})
    if method.dmd_weight and missing and (teacher.sides or len({*method.sides}) > 1):
        raise ValueError(
            f"sides are {method.sides}, the teacher's {teacher.sides or 'those of its data alone'}"
            f": DMD asks it at {', '.join(map(str, missing))} too. Train the teacher with "
            f'stage("teacher", "diffusion", sides={tuple(sorted({*method.sides}))}, ...), or leave '
            "DMD out with dmd_weight=0"
        )


def _check_steps(method: Method) -> None:
    """Times, sides and updates."""
    times, sides = method.times, method.sides
    check_steps(method.num_steps)
    check_times(times)
    check_sides(sides)
    if sides and len(sides) != len(times):
        raise ValueError(
            f"{len(sides)} sides {sides} and {len(times)} times {times}; a step has one of each"
        )
    if method.fake_updates != int(method.fake_updates) or method.fake_updates < 1:
        raise ValueError(f"fake_updates is {method.fake_updates}; expected a whole number from 1")


def _check_terms(method: Method) -> None:
    """Weights of the terms and what they are made of."""
    weights = {name: getattr(method, name) for name in (*TERMS, "critic_weight")}
    if min(weights.values()) < 0 or not any(weights[name] for name in TERMS):
        raise ValueError(f"weights are {weights}; expected none below 0, and a term that is on")
    if method.gan_weight and not method.critic_weight:
        raise ValueError(
            f"gan_weight is {method.gan_weight} and critic_weight 0: nothing would train the "
            "critic; give both a weight, or neither"
        )
    for name, known in (("mmd", KERNELS), ("mmd_features", ("teacher", "fake"))):
        if getattr(method, name) not in known:
            raise ValueError(f"{name} is {getattr(method, name)!r}; known: {', '.join(known)}")
    for name in RANGES:
        low, high = getattr(method, name)
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"{name} is {(low, high)}; expected times, 0 <= lowest <= highest <= 1"
            )
    if method.w < 0 or (method.w and not method.dmd_weight):
        raise ValueError(
            f"w is {method.w}; expected a guidance strength from 0, and 0 without DMD, which alone "
            "has use for it"
        )
