"""DMD2: a few-step student that matches the teacher's distribution by the gradient of a KL.

Yin et al. (2024), Improved Distribution Matching Distillation for Fast Image Synthesis,
arXiv:2405.14867.
"""

import jax

from distill_jax.diffusion.denoiser import without_dropout
from distill_jax.diffusion.schedule import Schedule
from distill_jax.diffusion.trained import Renoise
from distill_jax.methods import checks
from distill_jax.methods.base import Metrics, Nets, Phase, traced
from distill_jax.methods.matching import (
    Adversarial,
    denoising_loss,
    diffuse,
    dmd_loss,
    generator_gan_loss,
    logits,
    on_path,
    one_call,
    scaled,
    score_gap,
)
from distill_jax.runtime.options import option
from distill_jax.typing import Batch


@traced()
class Dmd2(Adversarial):
    """DMD2: per iteration, fake_updates of fake and discriminator, then one update of the student.

    The defaults are for one step without data; configs/imagenet64_dmd2.py has the released values
    for ImageNet 64.

    Args:
      times: falling times in (0, 1] of the student's calls, noised again between them, such as
        (1.0, 0.75, 0.5, 0.25); () for one call at sigma_init.
      sigma_init: noise level of that one call.
      w: guidance strength of the teacher, above -1; the student has it in its weights.
      levels: noise levels in the student's phase: a name in NOISE_LEVELS, lowest and highest level.
        The default is EDM's sampling grid from index 20 to 979 of 0 .. 999. The released code ends
        at index 980, level 72.05.
      fake_levels: noise levels in the fake's phase, and for the discriminator in both phases.
      weighting: weighting of the fake's denoising loss, a name in WEIGHTINGS.
      fake_updates: updates of the fake per iteration.
      gan_weight: weight of the student's GAN loss; with 0 there is no discriminator and no data.
      discriminator_weight: weight of the discriminator's loss; the fake's denoising loss has 1.
      discriminator: name of the discriminator head in models.DISCRIMINATORS.
    """

    times: tuple = option(checks.TIMES, ())
    sigma_init: float = option(checks.LEVEL, 2.5)
    w: float = option(checks.SIGNED_STRENGTH, 0.0)
    levels: tuple = option(checks.NOISE, ("karras", 0.00323, 71.6))
    fake_levels: tuple = option(checks.NOISE, ("karras", 0.002, 80.0))
    weighting: str = option(checks.WEIGHTING, "edm")
    fake_updates: int = option(checks.UPDATES, 5)
    gan_weight: float = option(checks.POSITIVE, 0.0)
    discriminator_weight: float = option(checks.POSITIVE, 1e-2)
    discriminator: str = "spatial"

    needs = (checks.takes_no_w, checks.matching, checks.has_null)

    @property
    def num_steps(self) -> int:
        return max(1, len(self.times))

    @property
    def phases(self) -> tuple[Phase, ...]:
        fake = Phase("fake", Dmd2.fake_loss, updates_per_iteration=self.fake_updates)
        return (fake, Phase("student", Dmd2.student_loss))

    def fake_loss(self, key: jax.Array, batch: Batch, nets: Nets) -> tuple[jax.Array, Metrics]:
        """Returns weight(l) |f_fake(z_t, t, c) - x|^2 + discriminator_weight * d_loss.

        x is the student's. The fake is never guided and has no dropout, as in the released code.
        Data and samples are noised independently.
        """
        k_x, k_fake, k_real, k_d = jax.random.split(key, 4)
        x, _ = on_path(k_x, nets.student, batch, self.sampler(nets.student.schedule).times)
        fake, levels = without_dropout(nets.fake), self.fake_levels
        loss = denoising_loss(k_fake, fake, x, batch.cond, levels, self.weighting)
        return self.with_discriminator(loss, k_real, k_d, batch, x, nets.fake)

    def student_loss(self, key: jax.Array, batch: Batch, nets: Nets) -> tuple[jax.Array, Metrics]:
        """Returns the DMD loss at a random noise level + gan_weight * generator_gan_loss."""
        k_x, k_z, k_d = jax.random.split(key, 3)
        x, _ = on_path(k_x, nets.student, batch, self.sampler(nets.student.schedule).times)
        z, t, _ = diffuse(k_z, nets.student.schedule, x, self.levels)
        real = scaled(nets.teacher, 1 + self.w, batch.null)(z, t, batch.cond).x
        fake = nets.fake(z, t, batch.cond).x
        loss, metrics = dmd_loss(x, real, fake), {"score_gap": score_gap(real - fake, real - x)}
        if self.has_discriminator:
            g_loss = generator_gan_loss(logits(k_d, nets.fake, x, batch.cond, self.fake_levels))
            return loss + self.gan_weight * g_loss, {**metrics, "generator_gan_loss": g_loss}
        return loss, metrics

    def sampler(self, schedule: Schedule) -> Renoise:
        return Renoise(self.times) if self.times else one_call(schedule, self.sigma_init)
