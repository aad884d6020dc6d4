"""Training of denoisers at all times: the teacher from data, and a student's from its samples."""

from typing import Any

import jax
import jax.numpy as jnp

from distill_jax.diffusion.noise_levels import NOISE_LEVELS
from distill_jax.diffusion.resize import area
from distill_jax.diffusion.schedule import Schedule, add_noise
from distill_jax.diffusion.trained import Ddim, Heun, Sampler
from distill_jax.methods import checks
from distill_jax.methods.base import (
    Method,
    Metrics,
    Nets,
    Phase,
    augmented,
    drop_labels,
    traced,
    weighted_mse,
    with_w,
)
from distill_jax.runtime.options import choice, option, optional
from distill_jax.typing import Batch, Image, Time


@traced("num_steps")
class Diffusion(Method):
    """The training of a denoiser on data, with label dropout for guidance.

    Args:
      num_steps: steps in sampling; the network is trained at all times.
      augment: probability of each change of the images by EDM's augmentation, 0 for none; the
        network is told of them by labels, see diffusion.augmentation.
      solver: sampler of the finished network: "ddim", or "heun", which is EDM's with 2 N - 1 calls.
      label_dropout: probability in [0, 1] of training an example on its null condition
        (Ho & Salimans 2022, arXiv:2207.12598); a teacher trained with 0 cannot be guided.
      weighting: name of the loss weighting in WEIGHTINGS.
      resolutions: sides of the square training images, one per iteration in turn, including the
        data's own; () for only the data's own. Scale-wise students need a teacher with several.
      levels: noise levels in training: a name in NOISE_LEVELS, lowest, highest level; None for
        uniform times. EDM (Karras et al. 2022, arXiv:2206.00364, Table 1) has ("lognormal", 0.002,
        80.0), with the schedule "karras" and the parameterization and weighting "edm".
      keep_weight: weight of the loss that keeps images of the network of the stage option `onto`.
      keep_labels: labels of these images.
    """

    num_steps: Any = option(checks.COUNT, 64)
    label_dropout: float = option(checks.PROBABILITY, 0.1)
    weighting: str = option(checks.WEIGHTING, "snr_trunc")
    resolutions: tuple[int, ...] = option(checks.RESOLUTIONS, ())
    levels: tuple | None = option(optional(checks.NOISE), None)
    augment: float = option(checks.PROBABILITY, 0.0)
    solver: str = option(choice(("ddim", "heun")), "ddim")
    keep_weight: float = option(checks.POSITIVE, 0.0)
    keep_labels: tuple[int, ...] = option(checks.LABELS, ())

    all_times = True
    needs_teacher = False

    @property
    def phases(self) -> tuple[Phase, ...]:
        """One update of the student per iteration, with one variant per resolution."""
        return (Phase("student", type(self).loss, variants=max(1, len(self.resolutions))),)

    def loss(
        self, key: jax.Array, batch: Batch, nets: Nets, turn: int = 0
    ) -> tuple[jax.Array, Metrics]:
        """Returns weight(l) |x_hat(z_t, t, c) - x|^2, t ~ U[0, 1): Salimans & Ho, Algorithm 1.

        With `levels`, t is drawn from their distribution instead. With `keep_weight` the loss of
        `kept` is added.
        """
        k_t, k_eps, k_drop, k_dropout = jax.random.split(key, 4)
        given = drop_labels(k_drop, batch, self.label_dropout)
        x, cond = augmented(jax.random.fold_in(k_drop, 1), batch.x, given, self.augment)
        if self.resolutions:
            x = area(x, self.resolutions[turn])

        t = self._times(k_t, nets.student.schedule, x)
        eps = jax.random.normal(k_eps, x.shape, x.dtype)
        z_t = add_noise(nets.student.schedule, x, eps, t)
        x_hat = nets.student(z_t, t, cond, k_dropout).x
        loss = weighted_mse(self.weighting, nets.student, x_hat, x, t)
        if not self.keep_weight:
            return loss, {}
        kept = self.kept(jax.random.fold_in(k_drop, 2), batch, nets)
        return loss + self.keep_weight * kept, {"kept": kept}

    def kept(self, key: jax.Array, batch: Batch, nets: Nets) -> jax.Array:
        """Returns mean |S'(z, c) - S(z, c)|^2 for noise z and c of keep_labels.

        S is the few-step student that is the teacher here, S' the same with the change that is
        learned; both draw with the sampler of S. It is Li & Hoiem's learning without forgetting
        (2016, arXiv:1606.09282), in the images that a generator draws.
        """
        k_z, k_label, k_draw = jax.random.split(key, 3)
        z = jax.random.normal(k_z, (batch.size, *nets.teacher.shape))
        labels = jnp.asarray(self.keep_labels, jnp.int32)
        cond = {**batch.cond, "label": jax.random.choice(k_label, labels, (batch.size,))}
        x, changed = (nets.sampler(k_draw, net, z, cond) for net in (nets.teacher, nets.changed))
        return jnp.mean((changed - x) ** 2)

    def sampler(self, schedule: Schedule) -> Sampler:
        """Returns the sampler named by `solver`."""
        return (Heun if self.solver == "heun" else Ddim)(self.num_steps)

    def _times(self, key: jax.Array, schedule: Schedule, x: Image) -> Time:
        """Draws a time for each image."""
        if self.levels is None:
            return jax.random.uniform(key, x.shape[:1], x.dtype)
        distribution, low, high = self.levels
        return NOISE_LEVELS[distribution](key, schedule, x.shape[:1], low, high).astype(x.dtype)


@traced("num_steps", "w_range")
class Dedistill(Diffusion):
    """The training of a denoiser on samples of its teacher, a few-step student; without data.

    Fine-tuning a few-step student by a denoising loss destroys it: the loss wants means of images.
    The denoiser of its own images can be fine-tuned so, and the change is added to the student's
    weights, see the stage option `onto`. Users of few-step models do this with adapters; adding
    differences of weights is task arithmetic (Ilharco et al. 2022, arXiv:2212.04089).

    Args:
      num_steps, label_dropout, weighting, resolutions: as for Diffusion.
      w_range: (smallest, largest) w, drawn uniformly, if the teacher takes w; else None.
    """

    label_dropout: float = option(checks.PROBABILITY, 0.0)
    w_range: Any = option(optional(checks.W_RANGE), None)

    needs_teacher = data_free = draws = True
    needs = (checks.keeps_w,)

    def loss(
        self, key: jax.Array, batch: Batch, nets: Nets, turn: int = 0
    ) -> tuple[jax.Array, Metrics]:
        """Returns the loss of Diffusion for samples that the teacher draws with its own sampler."""
        k_z, k_w, k_draw, k_loss = jax.random.split(key, 4)
        z = jax.random.normal(k_z, (batch.size, *nets.teacher.shape))
        batch = batch._replace(cond=with_w(k_w, batch.cond, self.w_range, z))
        x = nets.sampler(k_draw, nets.teacher, z, batch.cond)
        return super().loss(k_loss, batch._replace(x=x), nets, turn)
