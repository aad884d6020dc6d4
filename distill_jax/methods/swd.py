"""SwD: scale-wise distillation of a few-step student whose image size grows from step to step.

Starodubcev et al. (2026), Scale-wise Distillation of Diffusion Models, arXiv:2503.16397. Without
resolutions and MMD, with `backward`, it is DMD2 (Yin et al. 2024, arXiv:2405.14867) in a few steps.
"""

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.kernels import KERNELS
from distill_jax.diffusion.noise_levels import NOISE_LEVELS
from distill_jax.diffusion.prediction import mean_squared
from distill_jax.diffusion.resize import area, bicubic
from distill_jax.diffusion.samplers import renoise
from distill_jax.diffusion.schedule import Schedule, add_noise, expand
from distill_jax.diffusion.trained import Renoise
from distill_jax.methods import checks
from distill_jax.methods.base import Loss, Method, Metrics, Nets, Phase, traced
from distill_jax.methods.matching import (
    discriminator_loss,
    dmd_loss,
    generator_gan_loss,
    scaled,
    score_gap,
)
from distill_jax.runtime.options import choice, option
from distill_jax.typing import Batch, Image, Resized, Time


@traced()
class Swd(Method):
    """SwD: per iteration, fake_updates of the fake and one student update on images of one step.

    A term of weight 0 costs nothing. The defaults are the released code's, except for its w of 6.

    Args:
      times: falling times of the steps, in (0, 1].
      resolutions: image sides of the steps, growing to the data's; () for only the data's.
      w: guidance strength of the teacher in DMD.
      dmd_weight: weight of the distribution matching loss of teacher and fake.
      gan_weight: weight of the student's GAN loss; the discriminator is a head on the fake.
      discriminator_weight: weight of the discriminator's loss; the fake's denoising loss has 1.
      mmd_weight: weight of the feature distance of data and samples; 1 fits "pseudo_huber".
      mmd: its kernel in KERNELS: "pseudo_huber" (the code), "linear" (the paper), "rbf", "energy".
      mmd_features: role whose features are compared, "fake" (the code) or "teacher" (the paper).
      dmd_levels: noise levels in DMD and GAN: a name in NOISE_LEVELS, lowest and highest level.
      mmd_levels, fake_levels: noise levels in MMD, and in training fake and discriminator.
      backward: whether a step's input comes from the student's earlier steps, else from data.
      fake_updates: updates of the fake per update of the student.
    """

    times: tuple[float, ...] = option(checks.TIMES)
    resolutions: tuple[int, ...] = option(checks.RESOLUTIONS, ())
    w: float = option(checks.STRENGTH, 0.0)
    dmd_weight: float = option(checks.POSITIVE, 1.0)
    gan_weight: float = option(checks.POSITIVE, 5e-3)
    discriminator_weight: float = option(checks.POSITIVE, 1e-2)
    mmd_weight: float = option(checks.POSITIVE, 1.0)
    mmd: str = option(choice(KERNELS), "pseudo_huber")
    mmd_features: str = option(choice(("teacher", "fake")), "fake")
    dmd_levels: tuple = option(checks.NOISE, ("shifted_flow", 0.009, 3.77))
    mmd_levels: tuple = option(checks.NOISE, ("shifted_flow", 0.009, 1.51))
    fake_levels: tuple = option(checks.NOISE, ("shifted_flow", 0.009, 1000.0))
    backward: bool = False
    fake_updates: int = option(checks.UPDATES, 5)

    needs = (
        checks.discriminator,
        checks.all_times,
        checks.takes_no_w,
        checks.has_null,
        checks.scales,
    )

    @property
    def num_steps(self) -> int:
        return len(self.times)

    @property
    def has_discriminator(self) -> bool:
        return self.gan_weight != 0

    @property
    def needs_features(self) -> bool:
        return self.has_discriminator or self.mmd_weight != 0

    @property
    def needs_fake(self) -> bool:
        """Whether any term of the student's loss uses the fake."""
        features = self.mmd_weight != 0 and self.mmd_features == "fake"
        return self.dmd_weight != 0 or self.has_discriminator or features

    @property
    def phases(self) -> tuple[Phase, ...]:
        student = Phase("student", Swd.student_loss, variants=self.num_steps)
        fake = Phase("fake", Swd.fake_loss, self.fake_updates, self.num_steps)
        return (fake, student) if self.needs_fake else (student,)

    def fake_loss(self, key: jax.Array, batch: Batch, nets: Nets, turn: int = 0) -> Loss:
        """Returns |f_fake(z_t, t, c) - x|^2 + discriminator loss for student images of a step."""
        k_x, k_z = jax.random.split(key)
        real, x = self._images(k_x, batch, nets.student, turn)
        fake, cond = nets.fake, batch.cond
        z_real, z, t = _noisy(k_z, fake.schedule, self.fake_levels, real, x)
        loss = denoising = jnp.mean(mean_squared(fake(z, t, cond).x, x))
        metrics = {"denoising_loss": denoising}
        if self.has_discriminator:
            logits = fake.discriminator(z_real, t, cond), fake.discriminator(z, t, cond)
            metrics["discriminator_loss"] = discriminator_loss(*logits)
            loss += self.discriminator_weight * metrics["discriminator_loss"]
        return loss, metrics

    def student_loss(self, key: jax.Array, batch: Batch, nets: Nets, turn: int = 0) -> Loss:
        """Returns the weighted sum of the DMD, GAN (at the same z_t) and MMD losses of a step."""
        k_x, k_dmd, k_mmd = jax.random.split(key, 3)
        real, x = self._images(k_x, batch, nets.student, turn)
        schedule, cond, metrics = nets.student.schedule, batch.cond, Metrics()
        loss: jax.Array | float = 0.0
        _, z, t = _noisy(k_dmd, schedule, self.dmd_levels, real, x)
        if self.dmd_weight:
            teacher = scaled(nets.teacher, 1 + self.w, batch.null)
            guide, fake = teacher(z, t, cond).x, nets.fake(z, t, cond).x
            loss += self.dmd_weight * dmd_loss(x, guide, fake)
            metrics["score_gap"] = score_gap(guide - fake, guide - x)
        if self.gan_weight:
            metrics["generator_gan_loss"] = generator_gan_loss(nets.fake.discriminator(z, t, cond))
            loss += self.gan_weight * metrics["generator_gan_loss"]
        if self.mmd_weight:
            z_real, z, t = _noisy(k_mmd, schedule, self.mmd_levels, real, x)
            features = (nets.teacher if self.mmd_features == "teacher" else nets.fake).features
            metrics["mmd_loss"] = KERNELS[self.mmd](features(z_real, t, cond), features(z, t, cond))
            loss += self.mmd_weight * metrics["mmd_loss"]
        return loss, metrics  # type: ignore[return-value]  # One weight is not 0.

    def _images(
        self, key: jax.Array, batch: Batch, student: Denoiser, turn: int
    ) -> tuple[Resized, Resized]:
        """Returns data and student images at the resolution of step `turn`."""
        k_eps, k_path = jax.random.split(key)
        schedule, cond, resolutions = student.schedule, batch.cond, self.resolutions
        real = area(batch.x, resolutions[turn]) if resolutions else batch.x
        t = jnp.full(real.shape[:1], self.times[turn], real.dtype)
        eps = jax.random.normal(k_eps, real.shape, real.dtype)
        if turn == 0:
            return real, student(expand(schedule.sigma(t), eps) * eps, t, cond).x
        if self.backward:
            z = renoise(k_path, student, eps, cond, self.times, resolutions, stop=turn)
        else:
            before = area(real, resolutions[turn - 1]) if resolutions else real
            z = add_noise(schedule, bicubic(before, real.shape[1]), eps, t)
        return real, student(z, t, cond).x

    def sampler(self, schedule: Schedule) -> Renoise:
        return Renoise(self.times, self.resolutions)


def _noisy(
    key: jax.Array, schedule: Schedule, levels: tuple, real: Image, x: Image
) -> tuple[Image, Image, Time]:
    """Adds the same noise to data and samples; each pair has its own time."""
    k_t, k_eps = jax.random.split(key)
    t = NOISE_LEVELS[levels[0]](k_t, schedule, x.shape[:1], *levels[1:])
    eps = jax.random.normal(k_eps, x.shape, x.dtype)
    return add_noise(schedule, real, eps, t), add_noise(schedule, x, eps, t), t
