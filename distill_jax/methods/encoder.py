"""Distillation of an encoder: each of its N steps from image to noise learns two teacher steps.

Meng et al. (2023), On Distillation of Guided Diffusion Models, arXiv:2210.03142, distil an encoder
beside the decoder for style transfer. The target is that of Salimans & Ho (2022, arXiv:2202.00512),
Algorithm 2, with time reversed.
"""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import ENCODERS, mean_squared, v_from
from distill_jax.diffusion.samplers import ddim_step, encode_target
from distill_jax.diffusion.schedule import Schedule, add_noise
from distill_jax.diffusion.trained import Encode, Trained
from distill_jax.diffusion.weighting import WEIGHTINGS, snr_plus_one
from distill_jax.methods import checks
from distill_jax.methods.base import Method, Metrics, Nets, traced, with_w
from distill_jax.runtime.options import option, optional
from distill_jax.typing import Batch, Time


@traced("num_steps", "w_range")
class Encoder(Method):
    """The halving of an encoder: one step learns to land where two steps of reverse DDIM land.

    Nothing is clipped, see samplers.ddim_encode. The parameterization must have an eps that is
    accurate at t = 0; "x" and "both" divide by sigma(0) = 4.5e-5 there.

    Args:
      num_steps: number N of steps in encoding; the teacher must be an encoder of 2N steps, or a
        network that was trained at all times and with clip_target=False.
      w_range: (smallest, largest) w, drawn uniformly, if the teacher takes w; else None.
      weighting: name of the loss weighting in WEIGHTINGS.
    """

    num_steps: Any = option(checks.COUNT)
    w_range: tuple | None = option(optional(checks.W_RANGE), None)
    weighting: str = option(checks.WEIGHTING, "snr_plus_one")

    parameterizations = ENCODERS

    def loss(self, key: jax.Array, batch: Batch, nets: Nets) -> tuple[jax.Array, Metrics]:
        """Returns weight(l) |x_hat - x_target|^2, computed in v, t = i / N, i ~ U{0, ..., N - 1}.

        In x the error at t = 0 is sigma(0) times the error of v, and would be lost to rounding.
        """
        k_i, k_eps, k_w = jax.random.split(key, 3)
        x, schedule = batch.x, nets.student.schedule
        cond = with_w(k_w, batch.cond, self.w_range, x)

        i = jax.random.randint(k_i, x.shape[:1], 0, self.num_steps).astype(x.dtype)
        t, mid, s = ((i + part) / self.num_steps for part in (0.0, 0.5, 1.0))
        eps = jax.random.normal(k_eps, x.shape, x.dtype)
        z_t = add_noise(schedule, x, eps, t)

        first = nets.teacher(z_t, t, cond)
        z_mid = ddim_step(schedule, first, mid)
        second = nets.teacher(z_mid, mid, cond)
        target = encode_target(schedule, first, second, t, mid, s)
        v = v_from(target, schedule, t)
        v_hat = v_from(nets.student(z_t, t, cond), schedule, t)
        return jnp.mean(self._weight(nets.student, t) * mean_squared(v_hat, v)), {}

    def _weight(self, student: Denoiser, t: Time) -> Time:
        """Returns the weight of |v_hat - v|^2 that equals weight(l) on |x_hat - x|^2.

        It is weight(l) sigma^2 / power^2 with power = alpha^2 + sigma^2; 1 + e^l = power / sigma^2.
        """
        schedule, logsnr = student.schedule, student.schedule.logsnr(t)
        power = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
        return WEIGHTINGS[self.weighting](logsnr) / snr_plus_one(logsnr) / power

    def sampler(self, schedule: Schedule) -> Encode:
        """Returns reverse DDIM, which maps images to noise."""
        return Encode(self.num_steps)

    def check(self, teacher: Trained | None) -> None:
        """Checks the options, and that the teacher is an encoder or was trained at all times."""
        super().check(teacher)
        checks.makes_round(self, Encode, teacher)
        checks.exact_x(self, teacher)
