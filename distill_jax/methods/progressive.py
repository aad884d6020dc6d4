"""Progressive distillation, one round: a student of N steps learns from a teacher of 2N steps.

Salimans & Ho (2022), Progressive Distillation for Fast Sampling of Diffusion Models,
arXiv:2202.00512, section 3; with w, stage 2 of Meng et al. (2023, arXiv:2210.03142), section 3.2.
"""

import itertools
from typing import Any

import jax

from distill_jax.diffusion.denoiser import clipped
from distill_jax.diffusion.samplers import ddim_step, ddim_target
from distill_jax.diffusion.schedule import add_noise
from distill_jax.diffusion.trained import Ddim, Trained
from distill_jax.methods import checks
from distill_jax.methods.base import (
    Method,
    Metrics,
    Nets,
    drop_labels,
    saturating_target,
    traced,
    weighted_mse,
    with_w,
)
from distill_jax.runtime.options import option, optional, whole
from distill_jax.typing import Batch


@traced("num_steps", "w_range")
class Progressive(Method):
    """A halving round: one student step learns to land where two teacher steps land.

    Args:
      num_steps: number N of student steps; the teacher must have 2N steps or all times.
      w_range: (smallest, largest) w, drawn uniformly, if the teacher takes w; else None. The
        teacher has its guidance in its weights; this method adds none.
      weighting: name of the loss weighting in WEIGHTINGS.
      clip_target: whether the teacher's x is clipped in the target if the sampler clips. The
        reference does not clip it.
      factor: teacher steps per student step, at least 2, which both papers recommend; the teacher
        has factor * N steps.
      label_dropout: probability in [0, 1] of the null condition, for a student without w that will
        itself be guided. This is the two-student baseline of Meng et al. (2023), with one network
        for the conditional and the unconditional student.
    """

    num_steps: Any = option(checks.COUNT)
    w_range: tuple | None = option(optional(checks.W_RANGE), None)
    weighting: str = option(checks.WEIGHTING, "snr_trunc")
    clip_target: bool = True
    factor: int = option(whole(2, high=1024), 2)
    label_dropout: float = option(checks.PROBABILITY, 0.0)

    def loss(self, key: jax.Array, batch: Batch, nets: Nets) -> tuple[jax.Array, Metrics]:
        """Returns the loss of Algorithm 2 of Salimans & Ho (2022).

        t = (i + 1) / N, i ~ U{0, ..., N - 1}.
        """
        k_i, k_eps, k_w, k_drop = jax.random.split(key, 4)
        x, schedule = batch.x, nets.student.schedule
        clip = self.clip_target and nets.teacher.bounded
        teacher = clipped(nets.teacher) if clip else nets.teacher
        cond = drop_labels(k_drop, batch, self.label_dropout)
        cond = with_w(k_w, cond, self.w_range, x)

        i = jax.random.randint(k_i, x.shape[:1], 0, self.num_steps).astype(x.dtype)
        t, *times = ((i + 1 - k / self.factor) / self.num_steps for k in range(self.factor + 1))
        eps = jax.random.normal(k_eps, x.shape, x.dtype)
        z_t = add_noise(schedule, x, eps, t)

        first = teacher(z_t, t, cond)
        z_mid, target = ddim_step(schedule, first, times[0]), first.x
        for mid, s in itertools.pairwise(times):
            prediction = teacher(z_mid, mid, cond)
            z_mid = ddim_step(schedule, prediction, s)
            target = ddim_target(schedule, target, prediction.x, t, mid, s)
        x_hat = nets.student(z_t, t, cond).x
        if clip:
            target = saturating_target(target, x_hat)
        return weighted_mse(self.weighting, nets.student, x_hat, target, t), {}

    def check(self, teacher: Trained | None) -> None:
        """Checks the options, and that the teacher has factor * N steps or all times."""
        super().check(teacher)
        checks.makes_round(self, Ddim, teacher, self.factor)
        if self.label_dropout > 0 and (self.w_range is not None or not teacher.guidance.null):
            raise ValueError(
                f"label_dropout is {self.label_dropout}; it is for a student without w, and its "
                "teacher must have been trained with label_dropout too"
            )
