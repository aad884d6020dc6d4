"""What the sizes of methods must satisfy that train on images of several, each with one message."""

import itertools

from distill_jax.diffusion.kernels import KERNELS
from distill_jax.diffusion.trained import Trained
from distill_jax.methods.base import Method
from distill_jax.methods.checks import (
    check_all_times,
    check_choice,
    check_fake_updates,
    check_has_null,
    check_levels,
    check_steps,
    check_takes_no_w,
    check_times,
)

TERMS = ("dmd_weight", "gan_weight", "mmd_weight")


def check_resolutions(resolutions: tuple[int, ...]) -> None:
    """Raises ValueError unless resolutions are whole numbers from 1 that do not shrink."""
    whole = all(side == int(side) and side >= 1 for side in resolutions)
    if not whole or any(a > b for a, b in itertools.pairwise(resolutions)):
        raise ValueError(
            f"resolutions are {resolutions}; expected whole numbers from 1 that do not shrink, "
            "such as (4, 8)"
        )


def check_scale_wise(method: Method, teacher: Trained) -> None:
    """Raises ValueError for an Swd whose numbers make no sense, or whose teacher does not fit."""
    _check_steps(method)
    _check_terms(method)
    check_all_times(teacher)
    check_takes_no_w(teacher)
    if method.guides:
        check_has_null(teacher)
    mine = tuple(sorted({*method.resolutions}))
    missing = sorted({*mine} - {*teacher.resolutions})
    if method.dmd_weight and missing and (teacher.resolutions or len(mine) > 1):
        raise ValueError(
            f"resolutions are {method.resolutions}, the teacher's "
            f"{teacher.resolutions or 'those of its data only'}: DMD calls it at "
            f"{', '.join(map(str, missing))} too. Train the teacher with "
            f'stage("teacher", "diffusion", resolutions={mine}, ...), or leave DMD out with '
            "dmd_weight=0"
        )


def _check_steps(method: Method) -> None:
    """Times, resolutions and updates."""
    times, resolutions = method.times, method.resolutions
    check_steps(method.num_steps)
    check_times(times)
    check_resolutions(resolutions)
    if resolutions and len(resolutions) != len(times):
        raise ValueError(
            f"{len(resolutions)} resolutions {resolutions} and {len(times)} times {times}; a step "
            "has one of each"
        )
    check_fake_updates(method.fake_updates)


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
    check_choice("mmd", method.mmd, tuple(KERNELS))
    check_choice("mmd_features", method.mmd_features, ("teacher", "fake"))
    for name in ("dmd_levels", "mmd_levels", "fake_levels"):
        check_levels(name, getattr(method, name))
    if method.w < 0 or (method.w and not method.dmd_weight):
        raise ValueError(
            f"w is {method.w}; expected a guidance strength from 0, and 0 without DMD, which alone "
            "has use for it"
        )
