"""Decoupled DMD: DMD2's gradient in two terms, each with its own noise levels and weight.

Liu et al. (2025), Decoupled DMD: CFG Augmentation as the Spear, Distribution Matching as the
Shield, arXiv:2511.22677. The x of a guided teacher is

    (1 + w) c - w u = c + w (c - u),   c, u its x with and without the condition,

so DMD2's gradient in the student's x, with f the x of the fake, is a sum (equation 6; alpha there
is 1 + w, and differences of scores at one level are multiples of differences of x):

    (f - c - w (c - u)) / n = (f - c) / n - w (c - u) / n,   n = mean_pixels |x - c - w (c - u)|

The first term, distribution matching (DM), is DMD without guidance. It vanishes if the student has
the teacher's distribution. The second, CFG augmentation (CA), does not use the fake and never
vanishes; without the first it drives images out of their range. The two terms draw their noise
separately (equation 8), z_dm and z_ca, and each has the n of its own draw:

    g = dm_weight (f - c) / n at z_dm - ca_weight w (c - u) / n at z_ca
"""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser, without_dropout
from distill_jax.diffusion.noise_levels import level_of
from distill_jax.diffusion.schedule import Schedule
from distill_jax.diffusion.trained import Renoise, Trained
from distill_jax.methods import checks
from distill_jax.methods.base import Loss, Method, Metrics, Nets, Phase, traced
from distill_jax.methods.matching import (
    Noisy,
    denoising_loss,
    diffuse,
    normalised,
    on_path,
    one_call,
    push,
    score_gap,
)
from distill_jax.runtime.options import option
from distill_jax.typing import Batch, Image


@traced()
class DecoupledDmd(Method):
    """Decoupled DMD: per iteration, fake_updates of the fake, then one update of the student.

    It needs no data. The defaults are "Decoupled-Hybrid", the paper's own proposal (section 4.3),
    with the noise levels of DMD2 and without its discriminator.

    Args:
      times: falling times in (0, 1] of the student's calls; () for one call at sigma_init.
      sigma_init: noise level of that one call.
      w: guidance strength of the teacher, above -1.
      levels: noise levels in DM: a name in NOISE_LEVELS, lowest and highest level.
      ca_levels: noise levels in CA.
      dm_weight: weight of DM; with 0 no fake is trained.
      ca_weight: weight of CA.
      focused: whether CA draws only levels up to that of the student's call, except for the first
        call: earlier calls have settled coarser structure (section 4.1).
      shared: whether both terms use the same random numbers. With equal levels, weights of 1 and
        focused off, that is DMD2 ("Coupled-Shared").
      fake_levels, weighting, fake_updates: as in DMD2.
    """

    times: tuple = option(checks.TIMES, ())
    sigma_init: float = option(checks.LEVEL, 2.5)
    w: float = option(checks.SIGNED_STRENGTH, 1.0)
    levels: tuple = option(checks.NOISE, ("karras", 0.00323, 71.6))
    ca_levels: tuple = option(checks.NOISE, ("karras", 0.00323, 71.6))
    dm_weight: float = option(checks.POSITIVE, 1.0)
    ca_weight: float = option(checks.POSITIVE, 1.0)
    focused: bool = True
    shared: bool = False
    fake_levels: tuple = option(checks.NOISE, ("karras", 0.002, 80.0))
    weighting: str = option(checks.WEIGHTING, "edm")
    fake_updates: int = option(checks.UPDATES, 5)

    data_free = True
    needs = (checks.takes_no_w, checks.matching, checks.has_null)

    @property
    def num_steps(self) -> int:
        return max(1, len(self.times))

    @property
    def fixed_w(self) -> float:
        """The w that g = 0 implies if both terms draw the same levels: f = c + fixed_w (c - u)."""
        return self.w * self.ca_weight / self.dm_weight if self.dm_weight else self.w

    @property
    def phases(self) -> tuple[Phase, ...]:
        fake = Phase("fake", DecoupledDmd.fake_loss, updates_per_iteration=self.fake_updates)
        student = Phase("student", DecoupledDmd.student_loss)
        return (fake, student) if self.dm_weight else (student,)

    def fake_loss(self, key: jax.Array, batch: Batch, nets: Nets) -> Loss:
        """Returns weight(l) |f_fake(z_t, t, c) - x|^2 for an x of the student."""
        k_x, k_fake = jax.random.split(key)
        x, _ = on_path(k_x, nets.student, batch, self.sampler(nets.student.schedule).times)
        fake, levels = without_dropout(nets.fake), self.fake_levels
        return denoising_loss(k_fake, fake, x, batch.cond, levels, self.weighting), {}

    def student_loss(self, key: jax.Array, batch: Batch, nets: Nets) -> Loss:
        """Returns a loss whose gradient in the student's x is g over its number of elements."""
        k_x, k_dm, k_ca = jax.random.split(key, 3)
        schedule, metrics = nets.student.schedule, Metrics()
        g: Any = 0.0
        x, step = on_path(k_x, nets.student, batch, self.sampler(schedule).times)
        if self.dm_weight:
            z, t, _ = diffuse(k_dm, schedule, x, self.levels)
            c, guidance = self._teacher(nets.teacher, z, t, batch)
            residual, gap = x - c - self.w * guidance, nets.fake(z, t, batch.cond).x - c
            g += self.dm_weight * normalised(gap, residual)
            metrics["score_gap"] = score_gap(gap - self.fixed_w * guidance, residual)
        if self.ca_weight and self.w:
            z, t, _ = self._ca_noise(k_dm if self.shared else k_ca, schedule, x, step)
            c, guidance = self._teacher(nets.teacher, z, t, batch)
            g -= self.ca_weight * normalised(self.w * guidance, x - c - self.w * guidance)
        return push(x, g), metrics

    def _teacher(
        self, teacher: Denoiser, z: Image, t: jax.Array, batch: Batch
    ) -> tuple[Image, Any]:
        """Returns c and c - u; without guidance, c and 0."""
        c = teacher(z, t, batch.cond).x
        if not self.w:
            return c, 0.0
        null = {k: jnp.broadcast_to(x, batch.cond[k].shape) for k, x in batch.null.items()}
        return c, c - teacher(z, t, {**batch.cond, **null}).x

    def _ca_noise(
        self, key: jax.Array, schedule: Schedule, x: Image, step: jax.Array | int
    ) -> Noisy:
        distribution, low, high = self.ca_levels
        with jax.ensure_compile_time_eval():
            calls = [float(level_of(schedule, jnp.asarray(t))) for t in self.times[1:]]
        if not (self.focused and calls):
            return diffuse(key, schedule, x, self.ca_levels)
        tops = [high, *(max(low, min(high, level)) for level in calls)]
        drawn = [diffuse(key, schedule, x, (distribution, low, top)) for top in tops]
        return jax.tree.map(lambda *each: jnp.stack(each)[step], *drawn)

    def sampler(self, schedule: Schedule) -> Renoise:
        return Renoise(self.times) if self.times else one_call(schedule, self.sigma_init)

    def check(self, teacher: Trained | None) -> None:
        super().check(teacher)
        if not (self.dm_weight or self.ca_weight * self.w):
            raise ValueError("dm_weight, and ca_weight or w, are 0, so nothing trains the student")
