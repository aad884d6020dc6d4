"""One halving: a student of N steps learns two steps of a teacher of 2N, with or without w.

Salimans & Ho (2022), Progressive Distillation for Fast Sampling of Diffusion Models,
arXiv:2202.00512, section 3; with w, stage 2 of Meng et al. (2023, arXiv:2210.03142), section 3.2.
"""

from typing import Any

import jax

from distill_jax.diffusion.denoiser import Denoiser, clipped
from distill_jax.diffusion.samplers import ddim_step, ddim_target
from distill_jax.diffusion.schedule import add_noise
from distill_jax.methods.base import (
    Method,
    Metrics,
    Nets,
    Phase,
    check_halving,
    check_weighting,
    draw_w,
    reachable,
    sample_ddim,
    traced,
    weighted_mse,
)
from distill_jax.typing import Batch, Cond, Image


@traced("num_steps", "w_range")
class Progressive:
    """One step of the student lands where two steps of the teacher land.

    Args:
      num_steps: N, the student's steps; the teacher must be made for 2N steps or for all times.
      w_range: guidance strengths drawn uniformly for a teacher that takes w, None for one that
        does not. Guidance is in the teacher's weights; none is added here.
      weighting: a name in WEIGHTINGS.
      clip: whether the teacher's x is clipped to [-1, 1], in the target as in the sampler. The
        reference clips in the sampler alone.
    """

    num_steps: Any
    w_range: tuple | None = None
    weighting: str = "snr_trunc"
    clip: bool = True

    continuous = False
    needs_teacher = True
    decodes = True

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("student", Progressive.loss),)

    def loss(self, key: jax.Array, batch: Batch, nets: Nets) -> tuple[jax.Array, Metrics]:
        """Salimans & Ho (2022), Algorithm 2: t = (i + 1) / N, i ~ U{0, ..., N - 1}."""
        k_i, k_eps, k_w = jax.random.split(key, 3)
        x, schedule = batch.x, nets.student.schedule
        teacher = clipped(nets.teacher) if self.clip else nets.teacher
        cond = dict(batch.cond)
        if self.w_range is not None:
            cond["w"] = draw_w(k_w, self.w_range, x)

        i = jax.random.randint(k_i, x.shape[:1], 0, self.num_steps).astype(x.dtype)
        t, mid, s = ((i + part) / self.num_steps for part in (1.0, 0.5, 0.0))
        eps = jax.random.normal(k_eps, x.shape, x.dtype)
        z_t = add_noise(schedule, x, eps, t)

        first = teacher(z_t, t, cond)
        z_mid = ddim_step(schedule, first, mid)
        second = teacher(z_mid, mid, cond)
        target = ddim_target(schedule, first.x, second.x, t, mid, s)
        x_hat = nets.student(z_t, t, cond).x
        if self.clip:
            target = reachable(target, x_hat)
        return weighted_mse(self.weighting, nets.student, x_hat, target, t), {}

    def check(self, teacher: Method | None) -> None:
        check_weighting(self.weighting)
        check_halving(self, teacher)

    def sample(self, key: jax.Array, student: Denoiser, z: Image, cond: Cond) -> Image:
        return sample_ddim(self, student, z, cond)
