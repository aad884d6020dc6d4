"""Distillation for the stochastic sampler, one round: steps of length 2 / N on a grid of N.

Meng et al. (2023), On Distillation of Guided Diffusion Models, arXiv:2210.03142, section 3.4.
"""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.diffusion import trained
from distill_jax.diffusion.denoiser import clipped
from distill_jax.diffusion.samplers import ddim_step, ddim_target
from distill_jax.diffusion.schedule import Schedule, add_noise
from distill_jax.diffusion.trained import Trained
from distill_jax.methods import checks
from distill_jax.methods.base import (
    Method,
    Metrics,
    Nets,
    saturating_target,
    traced,
    weighted_mse,
    with_w,
)
from distill_jax.runtime.options import MAX_STEPS, Rule, option, optional, whole
from distill_jax.typing import Batch

STEPS = Rule(
    whole(2, high=MAX_STEPS).holds,
    "a whole number from 2: a stochastic round learns two teacher steps as one, and of a single "
    "step its target is the teacher's own x: the loss is 0. End at 2, such as halvings(512, end=2, "
    'method="stochastic"); both samplers make the same single step, which a progressive stage of '
    "num_steps=1 learns",
)


@traced("num_steps", "w_range")
class Stochastic(Method):
    """A round on a grid of N: one step of length 2 / N learns two teacher steps of length 1 / N.

    From the last time, 1 / N, one step of length 1 / N leads to 0. Apart from that time, the
    student is the deterministic one of N / 2 steps, trained on a grid twice as fine. The last round
    is N = 2, whose first call goes from t = 1 to 0.

    Args:
      num_steps: number N of student calls, at least 2; the teacher is a stochastic student of 2N
        calls, or was trained at all times.
      w_range: as in Progressive.
      weighting: name of the loss weighting in WEIGHTINGS.
      clip_target: as in Progressive.
    """

    num_steps: Any = option(STEPS)
    w_range: tuple | None = option(optional(checks.W_RANGE), None)
    weighting: str = option(checks.WEIGHTING, "snr_trunc")
    clip_target: bool = True

    def loss(self, key: jax.Array, batch: Batch, nets: Nets) -> tuple[jax.Array, Metrics]:
        """Returns the loss of a target from two teacher steps t -> t - 1/N -> t - 2/N, t = i / N.

        i ~ U{1, ..., N}. At i = 1 the first step has length 0, so one formula serves all i.
        """
        k_i, k_eps, k_w = jax.random.split(key, 3)
        x, schedule = batch.x, nets.student.schedule
        clip = self.clip_target and nets.teacher.bounded
        teacher = clipped(nets.teacher) if clip else nets.teacher
        cond = with_w(k_w, batch.cond, self.w_range, x)

        i = jax.random.randint(k_i, x.shape[:1], 1, self.num_steps + 1).astype(x.dtype)
        ends = (i, jnp.maximum(i - 1, 1), jnp.maximum(i - 2, 0))
        t, mid, s = (end / self.num_steps for end in ends)
        eps = jax.random.normal(k_eps, x.shape, x.dtype)
        z_t = add_noise(schedule, x, eps, t)

        first = teacher(z_t, t, cond)
        z_mid = ddim_step(schedule, first, mid)
        second = teacher(z_mid, mid, cond)
        target = ddim_target(schedule, first.x, second.x, t, mid, s)
        x_hat = nets.student(z_t, t, cond).x
        if clip:
            target = saturating_target(target, x_hat)
        return weighted_mse(self.weighting, nets.student, x_hat, target, t), {}

    def sampler(self, schedule: Schedule) -> trained.Stochastic:
        """Returns the stochastic sampler: steps of length 2 / N, and noise that goes back 1 / N."""
        return trained.Stochastic(self.num_steps)

    def check(self, teacher: Trained | None) -> None:
        """Checks the options, and that the teacher fits."""
        super().check(teacher)
        checks.makes_round(self, trained.Stochastic, teacher)
