"""What the numbers of methods must satisfy, each with one message."""

from typing import Any

from distill_jax.diffusion.weighting import WEIGHTINGS
from distill_jax.methods.base import Method


def check_steps(num_steps: Any) -> None:
    """Raises ValueError unless num_steps is a whole number from 1."""
    if num_steps != int(num_steps) or num_steps < 1:
        raise ValueError(
            f"num_steps is {num_steps}; a sampler takes a whole number of steps from 1"
        )


def check_w_range(w_range: tuple) -> None:
    """Raises ValueError unless w_range is (low, high) with 0 <= low <= high."""
    if len(w_range) != 2 or not 0 <= w_range[0] <= w_range[1]:
        raise ValueError(
            f"w_range is {tuple(w_range)}; expected (smallest, largest) with "
            "0 <= smallest <= largest, for w = 0 is the model without guidance"
        )


def check_probability(name: str, value: float) -> None:
    """Raises ValueError unless the value lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; expected a probability in [0, 1]")


def check_round(method: Method, teacher: Method, factor: int = 2) -> None:
    """Raises ValueError unless the teacher makes `factor` steps of each of the method's, at its w.

    The teacher is of the method's own kind, or knows all times.
    """
    n, kind, other = method.num_steps, _kind(method), _kind(teacher)
    check_steps(n)
    if not teacher.continuous and (other != kind or teacher.num_steps != factor * n):
        raise ValueError(
            f"{kind} student of {n} steps needs {kind} teacher of {factor * n}, or one that knows "
            f"all times, such as the guided stage; this teacher is {other} one of "
            f"{teacher.num_steps}"
        )
    if (method.w_range is None) != (teacher.w_range is None):
        raise ValueError(
            f"w_range is {method.w_range}, the teacher's {teacher.w_range}; a round keeps its "
            "teacher's input w: give w_range exactly when the teacher was trained with one"
        )
    if method.w_range is None:
        return
    check_w_range(method.w_range)
    if method.w_range[0] < teacher.w_range[0] or method.w_range[1] > teacher.w_range[1]:
        raise ValueError(
            f"w_range {tuple(method.w_range)} leaves the teacher's {tuple(teacher.w_range)}; "
            "stay inside it"
        )


def _kind(method: Method) -> str:
    name = type(method).__name__.lower()
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def check_weighting(weighting: str) -> None:
    """Raises ValueError for an unknown weighting."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"weighting is {weighting!r}; known: {', '.join(WEIGHTINGS)}")
