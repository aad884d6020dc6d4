"""Stage 1 of guided distillation: one network with the input w replaces two calls of the teacher.

Meng et al. (2023), On Distillation of Guided Diffusion Models, arXiv:2210.03142, section 3.1.
"""

from typing import Any

import jax

from distill_jax.diffusion.denoiser import clipped, guided
from distill_jax.diffusion.schedule import add_noise
from distill_jax.methods import checks
from distill_jax.methods.base import (
    Method,
    Metrics,
    Nets,
    draw_w,
    saturating_target,
    traced,
    weighted_mse,
)
from distill_jax.runtime.options import option
from distill_jax.typing import Batch


@traced("num_steps", "w_range")
class Guided(Method):
    """Stage 1: student(z, t, c, w) learns (1 + w) teacher(z, t, c) - w teacher(z, t, null).

    Args:
      w_range: (smallest, largest) w, drawn uniformly, 0 <= smallest.
      num_steps: DDIM steps in sampling; the network is trained at all times.
      weighting: name of the loss weighting in WEIGHTINGS.
      clip_target: whether the target is clipped if the sampler clips.
    """

    w_range: tuple = option(checks.W_RANGE, (0.0, 4.0))
    num_steps: Any = option(checks.COUNT, 64)
    weighting: str = option(checks.WEIGHTING, "snr_trunc")
    clip_target: bool = True

    all_times = True
    needs = (checks.takes_no_w, checks.all_times, checks.has_null)

    def loss(self, key: jax.Array, batch: Batch, nets: Nets) -> tuple[jax.Array, Metrics]:
        """Returns weight(l) |x_student(z_t, t, c, w) - x_guided|^2, t ~ U[0, 1): Algorithm 1."""
        k_t, k_eps, k_w = jax.random.split(key, 3)
        x = batch.x
        w = draw_w(k_w, self.w_range, x)
        t = jax.random.uniform(k_t, x.shape[:1], x.dtype)
        eps = jax.random.normal(k_eps, x.shape, x.dtype)
        z_t = add_noise(nets.student.schedule, x, eps, t)

        teacher = guided(nets.teacher, w, batch.null)
        clip = self.clip_target and nets.teacher.bounded
        target = (clipped(teacher) if clip else teacher)(z_t, t, batch.cond).x
        x_hat = nets.student(z_t, t, {**batch.cond, "w": w}).x
        if clip:
            target = saturating_target(target, x_hat)
        return weighted_mse(self.weighting, nets.student, x_hat, target, t), {}
