"""BOOT: a data-free student that predicts the signal at any time of the teacher's path from noise.

Gu et al. (2023), BOOT: Data-free Distillation of Denoising Diffusion Models with Bootstrapping,
arXiv:2306.05544. The authors released no code.
"""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser, clipped, guided
from distill_jax.diffusion.prediction import mean_squared
from distill_jax.diffusion.samplers import signal_step
from distill_jax.diffusion.schedule import Schedule, add_noise, expand
from distill_jax.diffusion.trained import Signal, Trained
from distill_jax.methods import checks
from distill_jax.methods.base import Method, Metrics, Nets, draw_w, traced
from distill_jax.runtime.options import (
    MAX_STEPS,
    check,
    choice,
    number,
    option,
    optional,
    whole,
)
from distill_jax.typing import Batch, Cond, Image, Time

ONE = whole(1, high=1)._replace(expected="1: BOOT's student makes one call")


@traced("num_steps", "w_range")
class Boot(Method):
    """The student y(eps, s) learns the end of one teacher step from y(eps, t), for all t > s.

    y_t = (z_t - sigma_t eps) / alpha_t is the signal in the teacher's path z_t from the noise eps,
    and y_0 is the image. The network's input is always that noise at t_max; the time of the signal
    is its input "target". So its parameterization is always evaluated at t_max.

    Args:
      num_steps: number of network calls, 1.
      w_range: (smallest, largest) w of a student that takes w as an input.
      w: the w in the weights of a student without that input.
      absorbed: whether the teacher itself takes w as an input, and is not guided.
      delta: step length t - s, in (0, t_max - t_min].
      t_min: time of the last signal, which is the sample.
      t_max: time of the noise.
      solver: ODE solver of the step, "euler" (DDIM) or "heun", which calls the teacher twice.
      step_weight: "constant", or "inverse" for 1 / D^2 with D of samplers.signal_step.
      boundary_weight: weight of the boundary loss, which ties y at t_max to the teacher's x there.
      clip_target: whether the teacher's x is clipped to the bounds of the data.
      teacher_steps: N for a teacher trained only at the times of its N steps: t and s are then
        neighbours on that grid from 1 to 0. 0 for a teacher trained at all times.
    """

    num_steps: Any = option(ONE, 1)
    w_range: tuple | None = option(optional(checks.W_RANGE), None)
    w: float = option(checks.STRENGTH, 0.0)
    absorbed: bool = False
    delta: float = option(number(0, 1, without=(0,)), 0.04)
    t_min: float = option(checks.PROBABILITY, 0.01)
    t_max: float = option(checks.PROBABILITY, 0.98)
    solver: str = option(choice(("euler", "heun")), "heun")
    step_weight: str = option(choice(("constant", "inverse")), "constant")
    boundary_weight: float = option(checks.POSITIVE, 1.0)
    clip_target: bool = False
    teacher_steps: int = option(whole(0, high=MAX_STEPS), 0)

    data_free = True

    @property
    def guides(self) -> bool:
        """Whether the teacher is guided at the student's w."""
        return not self.absorbed and bool(self.w or self.w_range)

    def loss(self, key: jax.Array, batch: Batch, nets: Nets) -> tuple[jax.Array, Metrics]:
        """Returns weight |y_s - sg(y_t + D (f - y_t))|^2 + boundary_weight |y_T - f(z_T, T)|^2.

        T is t_max, t is uniform, f is the teacher's x at z_t = alpha_t sg(y_t) + sigma_t eps.
        """
        k_t, k_eps, k_w = jax.random.split(key, 3)
        student, schedule = nets.student, nets.student.schedule
        eps = jax.random.normal(k_eps, (batch.size, *student.shape))
        t, s = self._times(k_t, eps)
        w = draw_w(k_w, self.w_range or (self.w, self.w), eps)
        cond = batch.cond if self.w_range is None else {**batch.cond, "w": w}
        given = {**batch.cond, "w": w} if self.absorbed else batch.cond
        teacher = guided(nets.teacher, w, batch.null) if self.guides else nets.teacher
        teacher = clipped(teacher) if self.clip_target else teacher
        y_t = jax.lax.stop_gradient(self.signal(student, eps, t, cond))
        y_s = self.signal(student, eps, s, cond)
        d = expand(signal_step(schedule, t, s), eps)
        f = teacher(add_noise(schedule, y_t, eps, t), t, given).x
        if self.solver == "heun":
            z_s = add_noise(schedule, y_t + d * (f - y_t), eps, s)
            f = (f + teacher(z_s, s, given).x) / 2
        target = y_t + d * (f - y_t)
        error = mean_squared(y_s, target)
        if self.step_weight == "inverse":
            error /= jnp.maximum(signal_step(schedule, t, s), 1e-3) ** 2
        bootstrap = jnp.mean(error)

        end = jnp.full_like(t, self._ends[1])
        pinned = teacher(expand(schedule.sigma(end), eps) * eps, end, given).x
        boundary = jnp.mean(mean_squared(self.signal(student, eps, end, cond), pinned))
        metrics = {"bootstrap_loss": bootstrap, "boundary_loss": boundary}
        return bootstrap + self.boundary_weight * boundary, metrics

    def signal(self, student: Denoiser, eps: Image, t: Time, cond: Cond) -> Image:
        """Returns y(eps, t), the signal at time t of the path from the noise eps."""
        end = jnp.full_like(t, self._ends[1])
        z = expand(student.schedule.sigma(end), eps) * eps
        return student(z, end, {**cond, "target": t}).x

    def sampler(self, schedule: Schedule) -> Signal:
        """Returns the sampler that calls the network once, at t_max for the signal at t_min."""
        return Signal(*self._ends)

    def check(self, teacher: Trained | None) -> None:
        """Checks the options against each other and against the teacher."""
        super().check(teacher)
        check("t_min", self.t_min, number(0, self.t_max))
        if not 0 < self.delta <= self.t_max - self.t_min:
            room = f"(0, {self.t_max - self.t_min:g}], inside t_min to t_max"
            raise ValueError(f"delta is {self.delta}; expected a step in {room}, such as 0.04")
        if self.w and self.w_range:
            raise ValueError(f"w is {self.w} and w_range {self.w_range}; expected one of them")
        theirs, (low, high) = teacher.guidance.w_range, self.w_range or (self.w, self.w)
        if self.absorbed != (theirs is not None):
            takes = "w" if theirs else "no w"
            raise ValueError(f"absorbed is {self.absorbed}, and the teacher takes {takes}")
        checks.has_null(self, teacher)
        if self.absorbed and not theirs[0] <= low <= high <= theirs[1]:
            raise ValueError(f"w from {low:g} to {high:g} leaves the teacher's {tuple(theirs)}")
        checks.teacher_steps(self, teacher)
        checks.exact_x(self, teacher)

    @property
    def _ends(self) -> tuple[float, float]:
        """The pair (t_min, t_max), or (0, 1) on the grid of a teacher."""
        return (0.0, 1.0) if self.teacher_steps else (self.t_min, self.t_max)

    def _times(self, key: jax.Array, eps: Image) -> tuple[Time, Time]:
        """Draws t and s < t, a distance delta apart, or neighbours on the teacher's grid."""
        n, (low, high) = self.teacher_steps, self._ends
        if n > 0:
            i = jax.random.randint(key, eps.shape[:1], 1, n + 1).astype(eps.dtype)
            return i / n, (i - 1) / n
        # t above 0, because the step from t = 0 has length 0.
        t = jax.random.uniform(key, eps.shape[:1], eps.dtype, max(low, 1e-6), high)
        return t, jnp.maximum(t - self.delta, low)
