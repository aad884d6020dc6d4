"""Power-function averages of weights, and their least-squares reconstruction after training.

Karras et al. (2023, arXiv:2312.02696), section 3 and appendix C. After t iterations with the
weights theta(1), ..., theta(t), which are constant on (i - 1, i], the average is

    int_0^t p(tau) theta(tau) dtau,   p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)

The standard deviation of its profile p, relative to t, is sigma_rel. It is the length of the
average, as a fraction of the training.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.runtime.options import Rule, every, number
from distill_jax.typing import Tree

# Up to 1 / sqrt(12), the sigma_rel of gamma = 0, where all iterations have the same weight.
SIGMA_REL = number(0.001, 0.2886)
SIGMA_RELS = Rule(
    lambda v: every(SIGMA_REL, 4).holds(v) and len({*v}) == len(v),
    f"at most 4 different values in a tuple, each {SIGMA_REL.expected}",
)
TOLERANCE = 1e-12  # Smallest singular value of the normalised profiles, relative to the largest.


class Profile(NamedTuple):
    """The profile p of an average, or of several, whose numbers are then arrays.

    Attributes:
      gamma: exponent.
      iteration: number t of iterations, from 1.
    """

    gamma: float | np.ndarray
    iteration: int | np.ndarray


def gamma_of(sigma_rel: float) -> float:
    """Returns the exponent gamma >= 0 of a relative standard deviation.

        sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3))

    It is the largest root of this cubic equation; the others are negative.
    """
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def updated(
    averages: Sequence[Tree],
    params: Tree,
    gammas: Sequence[float | jax.Array],
    before: int | jax.Array,
    after: int | jax.Array,
) -> tuple[Tree, ...]:
    """Returns the averages after an update, given the weights after it.

        beta average + (1 - beta) params,   beta = (before / after)^(gamma + 1)

    With after = before + 1 = t this is beta = (1 - 1 / t)^(gamma + 1).

    Args:
      averages: the averages before the update.
      params: the weights after it.
      gammas: exponent of each average.
      before: finished iterations before the update.
      after: finished iterations after it; the averages stay as they are if that is the same number.
    """
    part = (after - before) / jnp.maximum(after, 1)

    def one(average: Tree, gamma: float | jax.Array) -> Tree:
        share = -jnp.expm1((gamma + 1) * jnp.log1p(-part))  # 1 - beta, also where it is tiny.
        return jax.tree.map(lambda old, new: old + share * (new - old), average, params)

    return tuple(one(*each) for each in zip(averages, gammas, strict=True))


def product(a: Profile, b: Profile) -> Any:
    """Returns the inner product of profiles, int_0^min(t_a, t_b) p_a(tau) p_b(tau) dtau.

        (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (t_min / t_max)^gamma / t_max

    where the last gamma is that of the later profile.
    """
    later = np.where(a.iteration < b.iteration, b.gamma, a.gamma)
    low, high = np.minimum(a.iteration, b.iteration), np.maximum(a.iteration, b.iteration)
    scale = (a.gamma + 1) * (b.gamma + 1) / (a.gamma + b.gamma + 1)
    return scale * (low / high) ** later / high


def reconstruction(stored: Profile, target: Profile) -> tuple[np.ndarray, float]:
    """Returns the coefficients of the sum of `stored` that is nearest to `target`, and its error.

    The sum minimises int (sum_i c_i p_i - p)^2, by A c = b with A_ij = <p_i, p_j>, b_i = <p_i, p>.
    The error is the norm of the difference, relative to that of the target.
    """
    rows = Profile(*(np.asarray(each)[:, None] for each in stored))
    # Of normalised profiles, which are better conditioned.
    norms, norm = np.sqrt(product(stored, stored)), np.sqrt(product(target, target))
    a = product(rows, stored) / np.outer(norms, norms)
    b = product(stored, target) / (norms * norm)
    c = np.linalg.lstsq(a, b, TOLERANCE)[0]
    error = np.sqrt(max(0.0, 1 - 2 * c @ b + c @ a @ c))
    return c * norm / norms, float(error)
