"""MeanFlow: a network of average velocities, which goes from any time to any earlier in one step.

Geng et al. (2025), Mean Flows for One-step Generative Modeling, arXiv:2505.13447.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser, guided
from distill_jax.diffusion.noise_levels import NOISE_LEVELS
from distill_jax.diffusion.prediction import Prediction
from distill_jax.diffusion.schedule import Schedule, add_noise, expand
from distill_jax.diffusion.trained import FlowMap, Trained
from distill_jax.methods import checks
from distill_jax.methods.base import Method, Metrics, Nets, drop_labels, traced, with_w
from distill_jax.runtime.options import choice, number, option, optional
from distill_jax.typing import Batch, Cond, Image, Time


@traced("num_steps", "w_range")
class MeanFlow(Method):
    """The student's eps - x at z_t is the average velocity u from t down to r, its input "target".

        y_r = y_t - (tau_t - tau_r) u(z_t, r, t),   u = v - (tau_t - tau_r) du/dtau_t

    With y = z / (alpha + sigma) and tau = sigma / (alpha + sigma), every schedule is a rectified
    flow: y = (1 - tau) x + tau eps, and a path has the velocity v = eps - x. So the first equation
    is a DDIM step with the student's x and eps. The second is its derivative along a path, and
    holds for the average velocity only: at r = t it says u = v.

    Args:
      num_steps: equal steps in sampling; the network is trained for all pairs of times.
      source: v is the velocity of the "teacher" (distillation), or that of an example and its
        noise, "data" (the paper's training, which needs no teacher).
      w: guidance strength of v, in the weights of the student.
      w_range: (smallest, largest) w, drawn uniformly, of a student that takes w; else None.
      levels: noise levels of two times, of which t is the later: a name in NOISE_LEVELS, lowest and
        highest level.
      pairs: share of the examples with r < t; the others have r = t.
      power: p of the weight 1 / (|error|^2 + c)^p of an example; 0 for a plain squared error.
      c: c of that weight, for the sum over pixels.
      label_dropout: probability of the null condition, above 0 if v of "data" is guided.
    """

    num_steps: Any = option(checks.COUNT, 1)
    source: str = option(choice(("teacher", "data")), "teacher")
    w: float = option(checks.STRENGTH, 0.0)
    w_range: tuple | None = option(optional(checks.W_RANGE), None)
    levels: tuple = option(checks.NOISE, ("lognormal_meanflow", 1e-4, 1e4))
    pairs: float = option(checks.PROBABILITY, 0.25)
    power: float = option(number(0, 2), 1.0)
    c: float = option(number(0, 1e3, without=(0,)), 1e-3)
    label_dropout: float = option(checks.PROBABILITY, 0.0)

    parameterizations = ("v", "flow", "edm")  # Those whose x and eps are accurate at both ends.

    def loss(self, key: jax.Array, batch: Batch, nets: Nets) -> tuple[jax.Array, Metrics]:
        """Returns weight |u(z_t, r, t) - sg(v - (tau_t - tau_r) du/dtau_t)|^2: Algorithm 1."""
        k_t, k_eps, k_w, k_drop = jax.random.split(key, 4)
        x, schedule = batch.x, nets.student.schedule
        t, r = self.times(k_t, schedule, x)
        eps = jax.random.normal(k_eps, x.shape, x.dtype)
        z = add_noise(schedule, x, eps, t)
        cond = with_w(k_w, drop_labels(k_drop, batch, self.label_dropout), self.w_range, x)
        along = self.along(Prediction(x, eps), z, t, cond, batch.null, nets)

        u, du = average_velocity(nets.student, along, z, t, {**cond, "target": r})
        gap = expand(flow_time(schedule)(t) - flow_time(schedule)(r), z)
        target = jax.lax.stop_gradient(velocity(along) - gap * du)
        error = jnp.sum((u - target) ** 2, axis=tuple(range(1, z.ndim)))
        weight = jax.lax.stop_gradient(error + self.c) ** -self.power
        return jnp.mean(weight * error), {"error": jnp.mean(error) / x[0].size}

    def times(self, key: jax.Array, schedule: Schedule, x: Image) -> tuple[Time, Time]:
        """Draws t and r <= t: the later and the earlier of two times, or twice the same."""
        k_pair, *keys = jax.random.split(key, 3)
        name, low, high = self.levels
        draw, shape = NOISE_LEVELS[name], x.shape[:1]
        s, other = (draw(k, schedule, shape, low, high).astype(x.dtype) for k in keys)
        other = jnp.where(jax.random.bernoulli(k_pair, self.pairs, shape), other, s)
        return jnp.maximum(s, other), jnp.minimum(s, other)

    def along(
        self, data: Prediction, z: Image, t: Time, cond: Cond, null: Cond, nets: Nets
    ) -> Prediction:
        """Returns the x and eps whose eps - x is v at z_t, guided if the student is.

        "data" is guided against the student's own velocity for the null condition (section 4.2),
        whose guidance scale is 1 + w.
        """
        w = cond.get("w", jnp.full_like(t, self.w))
        if self.source == "teacher":
            given = {name: value for name, value in cond.items() if name != "w"}
            return (guided(nets.teacher, w, null) if self.guides else nets.teacher)(z, t, given)
        if not self.guides:
            return data
        blank = {name: jnp.broadcast_to(null.get(name, c), c.shape) for name, c in cond.items()}
        own = nets.student(z, t, {**blank, "target": t})
        return jax.tree.map(lambda a, b: (1 + expand(w, z)) * a - expand(w, z) * b, data, own)

    def sampler(self, schedule: Schedule) -> FlowMap:
        """Returns the sampler of num_steps equal steps."""
        return FlowMap(self.num_steps)

    @property
    def needs_teacher(self) -> bool:
        return self.source == "teacher"

    @property
    def needs(self) -> tuple[Callable[[Method, Trained], None], ...]:
        """The rules for a teacher; one that only gives its weights need not follow them."""
        rules = (checks.takes_no_w, checks.matching, checks.has_null)
        return rules if self.needs_teacher else ()

    def check(self, teacher: Trained | None) -> None:
        """Checks the options against each other and against the teacher."""
        super().check(teacher)
        if self.w and self.w_range:
            raise ValueError(f"w is {self.w} and w_range {self.w_range}; expected one of them")
        if self.guides and not (self.needs_teacher or self.label_dropout):
            raise ValueError(
                f"w is {self.w}, w_range {self.w_range} and label_dropout 0, with source 'data': "
                "guidance needs the student's own null condition; set label_dropout, such as 0.1"
            )


def average_velocity(
    student: Denoiser, along: Prediction, z: Image, t: Time, cond: Cond
) -> tuple[Image, Image]:
    """Returns the student's u and du/dtau_t, along a path through z with the x and eps `along`.

    Raises:
      ValueError: for a network with layers that have a gradient only.
    """
    schedule = student.schedule
    _, rate = jax.jvp(flow_time(schedule), (t,), (jnp.ones_like(t),))
    _, dz = jax.jvp(lambda t: add_noise(schedule, *along, t), (t,), (1 / rate,))
    try:
        return jax.jvp(lambda z, t: velocity(student(z, t, cond)), (z, t), (dz, 1 / rate))
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise ValueError(
            "layers of the student have a gradient and no forward derivative, which this method "
            "needs: take attention_kernel='xla', and where mesh.fsdp is above 1 another `remat` "
            "than 'full', and no network that scans over its blocks"
        ) from error


def velocity(prediction: Prediction) -> Image:
    """Returns eps - x."""
    return prediction.eps - prediction.x


def flow_time(schedule: Schedule) -> Callable[[Time], Time]:
    """Returns the function tau(t) = sigma / (alpha + sigma), which is t on a rectified flow."""
    return lambda t: schedule.sigma(t) / (schedule.alpha(t) + schedule.sigma(t))
