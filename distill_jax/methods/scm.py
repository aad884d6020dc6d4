"""sCM: a consistency model in continuous time, whose x has no derivative along a path.

Lu & Song (2024), Simplifying, Stabilizing and Scaling Continuous-Time Consistency Models,
arXiv:2410.11081. The authors released no code.
"""

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.prediction import SIGMA_DATA, Prediction
from distill_jax.diffusion.schedule import Schedule, expand
from distill_jax.methods import checks
from distill_jax.methods.base import Metrics, Nets, traced
from distill_jax.methods.paths import ConsistencyModel, Point
from distill_jax.runtime.options import number, option
from distill_jax.typing import Batch, Image, Time


@traced("w_range")
class Scm(ConsistencyModel):
    """A student whose x does not change along a path: dx/da = 0, computed by `jax.jvp`.

    a is the paper's angle, tan(a) = sigma / (sigma_data alpha). Rescaled to the standard deviation
    sigma_data, z is cos(a) x + sin(a) sigma_data eps.

    Args:
      tangent_warmup: share of the iterations in which the weight r of the tangent's second term
        rises from 0 to 1; 0 for r = 1 from the start.
      tangent_c: c in the normalised tangent g / (rms(g) + c).
      sigma_data: standard deviation of the data.
    """

    levels: tuple = option(checks.NOISE, ("lognormal_scm", 0.002, 80.0))
    tangent_warmup: float = option(checks.PROBABILITY, 0.1)
    tangent_c: float = option(number(0, 1e3, without=(0,)), 0.1)
    sigma_data: float = option(number(0, 1e3, without=(0,)), SIGMA_DATA)

    differentiates = True

    def loss(self, key: jax.Array, batch: Batch, nets: Nets) -> tuple[jax.Array, Metrics]:
        """Returns mean |F - sg(F + g / (rms(g) + c))|^2, F = v / sigma_data: Algorithm 1.

        The paper's learned weight w(t) is left out: the normalised tangents of all times have about
        the same size, which that weight would make equal.
        """
        r = jnp.minimum(1.0, (batch.progress + 1e-9) / (self.tangent_warmup + 1e-9))
        v, g = self.tangent(self.point(key, batch, nets), nets.student, r)
        rms = jnp.sqrt(jnp.mean(g**2, axis=tuple(range(1, g.ndim)), keepdims=True))
        f, g = v / self.sigma_data, g / (rms + self.tangent_c)
        loss = jnp.mean((f - jax.lax.stop_gradient(f + g)) ** 2)
        return loss, {"tangent": jnp.mean(rms)}

    def tangent(self, point: Point, student: Denoiser, r: jax.Array | float) -> tuple[Image, Image]:
        """Returns the student's velocity v, and g, which is cos(a) dx/da for r = 1.

            g = cos(a)^2 (dz/da - v) - r cos(a) sin(a) (z + dv/da)

        in the rescaled z. dz/da is the velocity of the path's own x and eps. The factor cos(a) is
        the prior weighting 1 / (sigma_data tan(a)) of dx/da, taken in F.
        """
        z, t, along, cond, k_dropout = point
        schedule, one = student.schedule, jnp.ones_like(t)
        a, da_dt = jax.jvp(lambda t: self.angle(schedule, t), (t,), (one,))
        cos, sin = expand(jnp.cos(a), z), expand(jnp.sin(a), z)

        def velocity(z: Image, t: Time) -> Image:
            return self.velocity(student(z, t, cond, k_dropout), self.angle(schedule, t))

        rates = [jax.jvp(f, (t,), (one,))[1] / da_dt for f in (schedule.alpha, schedule.sigma)]
        dz_da = expand(rates[0], z) * along.x + expand(rates[1], z) * along.eps
        v, dv_da = jax.jvp(velocity, (z, t), (dz_da, 1 / da_dt))
        norm = jnp.hypot(schedule.sigma(t), self.sigma_data * schedule.alpha(t))
        z = z * expand(self.sigma_data / norm, z)
        first = self.velocity(along, a) - v
        return v, cos * (cos * first - r * sin * (z + dv_da))

    def angle(self, schedule: Schedule, t: Time) -> Time:
        """Returns a at t, in [0, pi / 2]."""
        return jnp.arctan2(schedule.sigma(t), self.sigma_data * schedule.alpha(t))

    def velocity(self, p: Prediction, a: Time) -> Image:
        """Returns cos(a) sigma_data eps - sin(a) x, the derivative of the rescaled z in a."""
        cos, sin = expand(jnp.cos(a), p.x), expand(jnp.sin(a), p.x)
        return cos * self.sigma_data * p.eps - sin * p.x
