"""Your own method: a one-call student that regresses on DDIM samples of the teacher.

Luhman & Luhman (2021), Knowledge Distillation in Iterative Generative Models for Improved Sampling
Speed, arXiv:2101.02388. A stage of a config refers to it by name:

    stage("direct", "examples.my_method:Direct", teacher_steps=8, steps=2000, learning_rate=5e-4)

    python -m distill_jax.main --config=examples/my_config.py
"""

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import clipped
from distill_jax.diffusion.prediction import mean_squared
from distill_jax.diffusion.samplers import ddim
from distill_jax.methods import checks
from distill_jax.methods.base import Method, Metrics, Nets, traced
from distill_jax.runtime.options import option
from distill_jax.typing import Batch


@traced("teacher_steps")
class Direct(Method):
    """Regression of the student's x for pure noise on the teacher's sample from the same noise.

    Args:
      teacher_steps: DDIM steps of the teacher, which makes as many calls per update.
    """

    teacher_steps: int | jax.Array = option(checks.COUNT, 8)

    num_steps = 1
    data_free = True  # batch.x is None: the images are the teacher's.
    needs = (checks.all_times, checks.takes_no_w)  # What a teacher must be.

    def loss(self, key: jax.Array, batch: Batch, nets: Nets) -> tuple[jax.Array, Metrics]:
        """Returns |f(sigma(1) eps, 1, c) - DDIM(eps, c)|^2 for standard normal noise eps."""
        eps = jax.random.normal(key, (batch.size, *nets.student.shape))
        x = ddim(clipped(nets.teacher), eps, batch.cond, self.teacher_steps)
        t = jnp.ones(batch.size)
        x_hat = nets.student(nets.student.schedule.sigma(t[0]) * eps, t, batch.cond).x
        return jnp.mean(mean_squared(x_hat, x)), {}
