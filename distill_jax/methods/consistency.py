"""Consistency models in discrete time: every point of a path is mapped to the same image.

Distillation and training: Song et al. (2023), Consistency Models, arXiv:2303.01469; the distance,
noise levels and grids of training: Song & Dhariwal (2023), Improved Techniques for Training
Consistency Models, arXiv:2310.14189; training from a diffusion model's weights with steps that
shrink: Geng et al. (2024), Consistency Models Made Easy, arXiv:2406.14548.
"""

import jax
import jax.numpy as jnp

from distill_jax.diffusion.noise_levels import RHO, level_of, time_of
from distill_jax.diffusion.prediction import Prediction, eps_from_x, mean_squared
from distill_jax.diffusion.samplers import ddim_step
from distill_jax.diffusion.schedule import expand
from distill_jax.diffusion.weighting import WEIGHTINGS
from distill_jax.methods.base import Metrics, Nets, traced
from distill_jax.methods.paths import ConsistencyModel
from distill_jax.runtime.options import choice, number, option, whole
from distill_jax.typing import Batch, Time


@traced("w_range")
class Consistency(ConsistencyModel):
    """Neighbouring points of a path have the same x, which the noisier one learns from the other.

    The defaults are ECT's. iCT has pairs "karras", 8 halvings, weighting "step" and huber 0.00054.

    Args:
      pairs: the level s of the second point, below t: "ect" for t - t (1 + 8 sigmoid(-t)) / q^a, or
        0 where that is negative; "karras" for a step down EDM's grid of `first` q^(a - 1) steps.
      q: factor by which the steps shrink from one phase of the training to the next.
      shrinkings: number of phases, of equal length; a is 1 in the first.
      first: number of steps of the grid in the first phase.
      solver: ODE solver of the step along the teacher's path, "euler" (DDIM) or "heun", which calls
        the teacher twice.
      huber: c of the distance sqrt(mean d^2 + c^2) - c; 0 stands for mean d^2.
      weighting: name of the weighting in WEIGHTINGS, or "step" for 1 / (t - s), in noise levels.
    """

    pairs: str = option(choice(("ect", "karras")), "ect")
    q: float = option(number(1, 1e6), 2.0)
    shrinkings: int = option(whole(1, high=64), 8)
    first: int = option(whole(1, high=10_000), 10)
    solver: str = option(choice(("euler", "heun")), "euler")
    huber: float = option(number(0, 1e3), 0.001)
    weighting: str = option(choice((*WEIGHTINGS, "step")), "edm")

    def loss(self, key: jax.Array, batch: Batch, nets: Nets) -> tuple[jax.Array, Metrics]:
        """Returns weight distance(x(z_t, t), sg(x(z_s, s))), z_s from z_t by one step t -> s.

        Song et al. (2023), Algorithms 2 and 3, with the student itself in place of its EMA, as in
        Song & Dhariwal (2023), section 3.2. Dropout is the same at both points.
        """
        z_t, t, along, cond, k_dropout = self.point(key, batch, nets)
        student, schedule = nets.student, nets.student.schedule
        level = level_of(schedule, t)
        lower = self.lower(level, batch.progress)
        s = jnp.where(lower > 0, time_of(schedule, jnp.maximum(lower, 1e-6)), 0.0)
        z_s = ddim_step(schedule, along, s)
        if self.solver == "heun" and self.source == "teacher":
            x = (along.x + self.follow(z_s, s, cond, batch, nets).x) / 2
            z_s = ddim_step(schedule, Prediction(x, eps_from_x(z_t, x, schedule, t)), s)
        end = student(z_s, s, cond, k_dropout).x
        target = jax.lax.stop_gradient(jnp.where(expand(s, z_s) > 0, end, z_s))
        error = mean_squared(student(z_t, t, cond, k_dropout).x, target)
        distance = jnp.sqrt(error + self.huber**2) - self.huber if self.huber else error
        if self.weighting == "step":
            weight = 1 / (level - lower)
        else:
            weight = WEIGHTINGS[self.weighting](schedule.logsnr(t))
        return jnp.mean(weight * distance), {"error": jnp.mean(jnp.sqrt(error))}

    def lower(self, level: Time, progress: jax.Array | float) -> Time:
        """Returns the level of the second point, in [0, level), in this part of the training.

        "ect": Geng et al. (2024), section 3, with k = 8 and b = 1, the released code's. "karras":
        Song et al. (2023), section 3; the level need not be on the grid.
        """
        shrunk = self.q ** jnp.floor(progress * self.shrinkings)
        if self.pairs == "ect":
            step = (1 + 8 * jax.nn.sigmoid(-level)) / (self.q * shrunk)
            return level * jnp.maximum(1 - step, 0.0)
        _, low, high = self.levels
        step = (high ** (1 / RHO) - low ** (1 / RHO)) / (self.first * shrunk)
        return jnp.maximum(level ** (1 / RHO) - step, 0.0) ** RHO
