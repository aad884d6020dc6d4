"""SiD and SiD-LSG: a data-free student of one or a few steps, trained by score identities.

SiD: Zhou et al. (2024), Score identity Distillation, arXiv:2404.04057. SiD-LSG, with guidance: Zhou
et al. (2024), Long and Short Guidance, arXiv:2406.01561. With `times`: Zhou et al. (2025), Few-Step
Diffusion via Score identity Distillation, arXiv:2505.12674, which trains on the images of all steps
alike. With `gan_weight`: Zhou et al. (2024), SiDA, Adversarial SiD, arXiv:2410.14919.
"""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.diffusion.denoiser import Denoiser
from distill_jax.diffusion.noise_levels import time_of
from distill_jax.diffusion.prediction import Prediction
from distill_jax.diffusion.schedule import Schedule
from distill_jax.diffusion.trained import Renoise
from distill_jax.methods import checks, matching
from distill_jax.methods.base import Metrics, Nets, Phase, drop_labels, traced, with_w
from distill_jax.runtime.options import number, option, optional, whole
from distill_jax.typing import Batch, Cond, Image


@traced("num_steps", "w_range", "alpha")
class SidLsg(matching.Adversarial):
    """SiD-LSG: per iteration, fake_updates of the fake on student images, then one student update.

    The defaults are SiD. SiD-LSG has alpha 1, kappas 1.5, ("scaled_linear", 0.138, 12.97) for
    levels and fake_levels, weighting "snr" and loss_scale 1.

    Args:
      num_steps: calls in sampling; training is for 1, more repeat it, noised, at t_init (1 - i/N).
      times: falling times in (0, 1] of a student that is trained for several calls, noised again
        between them; each batch has the images of one of them, drawn uniformly. () for one call.
      alpha: 0.5 gives the gradient of the Fisher divergence, 1 the same with the distribution of z
        held fixed. SiD has 1.2, which widens a narrow generator faster, and fails for a generator
        much wider than the data.
      kappas: guidance scales 1 + w, four or one for all: in the fake's training, of the fake in the
        gap, of the fake in the residual, of the teacher. One for all is long and short guidance;
        (1, 1, 1, kappa) is long guidance. 1 is the conditional model.
      w_range: (smallest, largest) w, drawn uniformly, if the teacher takes w; else None.
      sigma_init: noise level of the student's input.
      levels: noise levels in the student's phase: a name in NOISE_LEVELS, lowest, highest level.
      fake_levels, weighting: noise levels and weighting (in WEIGHTINGS) of the fake's loss.
      fake_updates: updates of the fake per iteration.
      null_dropout: probability of the null condition in the fake's phase, for both student and
        fake; used if a kappa other than 1 needs the fake's null condition.
      augment: probability of each of EDM's changes of the fake's images, see augmentation.augment.
      loss_scale: factor of the student's loss, a sum over pixels.
      gan_weight: weight in every pixel of the batch's mean GAN loss; the released code has 0.01
        beside a loss_scale of 100. With 0 there is no discriminator and no data.
      discriminator_weight, discriminator: as for Dmd2; "channels" is the paper's.
    """

    num_steps: Any = option(whole(1, high=1024), 1)
    times: tuple = option(checks.TIMES, ())
    alpha: Any = option(number(0, 1.5), 1.0)
    kappas: Any = option(checks.KAPPAS, 1.0)
    w_range: tuple | None = option(optional(checks.W_RANGE), None)
    sigma_init: float = option(checks.LEVEL, 2.5)
    levels: tuple = option(checks.NOISE, ("karras", 0.002, 24.41))
    fake_levels: tuple = option(checks.NOISE, ("lognormal", 0.002, 80.0))
    weighting: str = option(checks.WEIGHTING, "edm")
    fake_updates: int = option(checks.UPDATES, 1)
    null_dropout: float = option(checks.PROBABILITY, 0.1)
    augment: float = option(checks.PROBABILITY, 0.0)
    loss_scale: float = option(number(0, 1e6, without=(0,)), 100.0)
    gan_weight: float = option(checks.POSITIVE, 0.0)
    discriminator_weight: float = option(checks.POSITIVE, 0.03)
    discriminator: str = "channels"

    needs = (checks.matching, checks.keeps_w, checks.kappas, checks.one_set_of_calls)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """The phases: fake_updates updates of the fake, then one of the student."""
        fake = Phase("fake", SidLsg.fake_loss, updates_per_iteration=self.fake_updates)
        return (fake, Phase("student", SidLsg.student_loss))

    @property
    def scales(self) -> tuple[float, ...]:
        """The guidance scales kappa_1 .. kappa_4."""
        return tuple(self.kappas) if isinstance(self.kappas, tuple) else (self.kappas,) * 4

    @property
    def fixed_w(self) -> float:
        """The w of the result, kappa_1 kappa_4 / kappa_2 - 1 for Gaussians of one covariance."""
        k_1, k_2, _, k_4 = self.scales
        return k_1 * k_4 / k_2 - 1

    @property
    def guides(self) -> bool:
        """Whether a network takes w, or a kappa other than 1 needs the null condition."""
        return self.w_range is not None or any(kappa != 1 for kappa in self.scales)

    def fake_loss(self, key: jax.Array, batch: Batch, nets: Nets) -> tuple[jax.Array, Metrics]:
        """Returns weight(l) |f_fake(z_t, t, c) - x|^2 at scale kappa_1 for an x of the student."""
        k_x, k_z, k_drop, k_d = jax.random.split(key, 4)
        k_1, k_2, k_3, _ = self.scales
        if (k_1, k_2, k_3) != (1, 1, 1):
            # Student and fake share the dropped conditions: the fake's null branch must learn the
            # student's images under the null condition, not those of a label.
            batch = batch._replace(cond=drop_labels(k_drop, batch, self.null_dropout))
        x, cond = self._generate(k_x, batch, nets.student)
        fake = matching.scaled(nets.fake, k_1, batch.null)
        terms = self.fake_levels, self.weighting, self.augment
        loss = matching.denoising_loss(k_z, fake, x, cond, *terms)
        return self.with_discriminator(loss, k_d, k_d, batch._replace(cond=cond), x, nets.fake)

    def student_loss(self, key: jax.Array, batch: Batch, nets: Nets) -> tuple[jax.Array, Metrics]:
        """Returns the sum over pixels of the integrand of `terms` / mean_pixels |f_teacher - x|.

        SiDA adds the mean GAN loss of the batch to every pixel's integrand, at the same noisy x.

        x has a gradient directly and through teacher and fake; only the normaliser has none. The
        value is (1 - alpha) times a divergence and shows no progress; watch "score_gap" instead.
        """
        k_x, k_z, k_dropout = jax.random.split(key, 3)
        x, cond = self._generate(k_x, batch, nets.student, k_dropout)
        noisy = matching.diffuse(k_z, nets.student.schedule, x, self.levels)
        gap, residual, integrand = self.terms(x, noisy, cond, batch.null, nets)
        loss = self.loss_scale * jnp.sum(matching.normalised(integrand, residual)) / len(x)
        metrics = {"score_gap": matching.score_gap(gap, residual)}
        if self.has_discriminator:
            fakeness = matching.generator_gan_loss(nets.fake.discriminator(noisy.z, noisy.t, cond))
            each = matching.normalised(jnp.full_like(x, self.gan_weight), residual)
            loss += fakeness * jnp.sum(each) / len(x)
            metrics["generator_gan_loss"] = fakeness
        return loss, metrics

    def terms(
        self, x: Image, noisy: matching.Noisy, cond: Cond, null: Cond, nets: Nets
    ) -> tuple[Image, Image, Image]:
        """Returns d = f_teacher - f_fake, r = f_teacher - x, d ((1 - alpha) r + alpha r').

        The fake has scale kappa_2 in d, and kappa_3 in r' = f_fake - x. If the two are equal, the
        third is d (r - alpha d), the integrand of SiD; with alpha 1 it is that of SiD-LSG.
        """
        z, t, eps = noisy
        _, k_2, k_3, k_4 = self.scales
        real = matching.scaled(nets.teacher, k_4, null)(z, t, cond)
        fake = fake_3 = matching.scaled(nets.fake, k_2, null)(z, t, cond)
        if k_3 != k_2:
            fake_3 = matching.scaled(nets.fake, k_3, null)(z, t, cond)

        truth, schedule = Prediction(x, eps), nets.teacher.schedule
        gap = matching.x_difference(real, fake, schedule, t)
        residual = matching.x_difference(real, truth, schedule, t)
        other = matching.x_difference(fake_3, truth, schedule, t)
        return gap, residual, gap * ((1 - self.alpha) * residual + self.alpha * other)

    def _generate(
        self, key: jax.Array, batch: Batch, student: Denoiser, k_dropout: jax.Array | None = None
    ) -> tuple[Image, Cond]:
        """Generates images with the student; returns them and their conditions."""
        k_eps, k_w = jax.random.split(key)
        eps = jax.random.normal(k_eps, (batch.size, *student.shape))
        batch = batch._replace(cond=with_w(k_w, batch.cond, self.w_range, eps))
        if self.times:
            return matching.on_path(k_eps, student, batch, self.times, k_dropout)[0], batch.cond
        t = time_of(student.schedule, self.sigma_init)
        return matching.generate(student, eps, t, batch.cond, k_dropout), batch.cond

    def sampler(self, schedule: Schedule) -> Renoise:
        """Returns the sampler: `times`, one call at sigma_init, or num_steps on its own images."""
        if self.times:
            return Renoise(self.times)
        once = matching.one_call(schedule, self.sigma_init)
        return once if self.num_steps == 1 else once.with_steps(self.num_steps)
