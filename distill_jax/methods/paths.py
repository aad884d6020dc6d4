"""The base class of consistency models, whose student's x is the end of the path through z."""

from typing import NamedTuple

import jax

from distill_jax.diffusion.denoiser import guided
from distill_jax.diffusion.noise_levels import NOISE_LEVELS, time_of
from distill_jax.diffusion.prediction import ENCODERS, Prediction
from distill_jax.diffusion.schedule import Schedule, add_noise
from distill_jax.diffusion.trained import Renoise
from distill_jax.methods import checks
from distill_jax.methods.base import Method, Nets, traced, with_w
from distill_jax.runtime.options import choice, option, optional
from distill_jax.typing import Batch, Cond, Image, Time


class Point(NamedTuple):
    """A point z at time t of a path, and the prediction (x, eps) that the path follows there.

    Its tangent is dz/dt = alpha' x + sigma' eps. From a teacher it is that of the probability flow;
    for the x and eps of z itself, it is so in the mean over all x and eps that give this z.
    """

    z: Image
    t: Time
    along: Prediction
    cond: Cond
    key: jax.Array


@traced("w_range")
class ConsistencyModel(Method):
    """What all consistency models share: the points of the paths, the teacher and the sampler.

    The student's x(z, t) is the end of the path through z. At t = 0 it is z, by the
    parameterization.

    Args:
      source: the path's direction, from the "teacher" (distillation) or the "data" (training). The
        student starts with the weights of the teacher in both.
      w: guidance strength of the teacher, in the weights of the student.
      w_range: (smallest, largest) w, drawn uniformly, of a student that takes w; else None.
      levels: noise levels of z: a name in NOISE_LEVELS, lowest and highest level.
      times: falling times in (0, 1] of the student's calls in sampling, noised again between them;
        () for one call at the highest level.
    """

    source: str = option(choice(("teacher", "data")), "teacher")
    w: float = option(checks.STRENGTH, 0.0)
    w_range: tuple | None = option(optional(checks.W_RANGE), None)
    levels: tuple = option(checks.NOISE, ("lognormal_ict", 0.002, 80.0))
    times: tuple = option(checks.TIMES, ())

    parameterizations = ENCODERS  # Those with x(z, 0) = z, whose v is accurate there.
    needs = (checks.takes_no_w, checks.matching, checks.has_null, checks.source)

    @property
    def num_steps(self) -> int:
        return max(1, len(self.times))

    def point(self, key: jax.Array, batch: Batch, nets: Nets) -> Point:
        """Returns random points of paths, at noise levels drawn from `levels`."""
        k_t, k_eps, k_w, k_dropout = jax.random.split(key, 4)
        x, schedule, (name, low, high) = batch.x, nets.student.schedule, self.levels
        t = NOISE_LEVELS[name](k_t, schedule, x.shape[:1], low, high).astype(x.dtype)
        eps = jax.random.normal(k_eps, x.shape, x.dtype)
        z, along = add_noise(schedule, x, eps, t), Prediction(x, eps)
        cond = with_w(k_w, batch.cond, self.w_range, x)
        if self.source == "teacher":
            along = self.follow(z, t, cond, batch, nets)
        return Point(z, t, along, cond, k_dropout)

    def follow(self, z: Image, t: Time, cond: Cond, batch: Batch, nets: Nets) -> Prediction:
        """Returns the prediction of the teacher, guided at the student's w."""
        if not self.guides:
            return nets.teacher(z, t, cond)
        return guided(nets.teacher, cond.get("w", self.w), batch.null)(z, t, batch.cond)

    def sampler(self, schedule: Schedule) -> Renoise:
        with jax.ensure_compile_time_eval():
            return Renoise(self.times or (float(time_of(schedule, self.levels[2])),))
