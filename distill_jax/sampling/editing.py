"""Edits of images by finished networks: arrays in, arrays out.

Every function compiles once and serves all labels, all w and all numbers of steps.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion import editing
from distill_jax.diffusion.denoiser import NetworkSpec, clipped
from distill_jax.diffusion.noise import noise_of
from distill_jax.diffusion.trained import Ddim
from distill_jax.sampling.codecs import PIXELS
from distill_jax.sampling.student import Guiding, Student, bound
from distill_jax.typing import Cond, Image, Tree

Images = jax.Array | np.ndarray  # (num, h, w, c) in [-1, 1].
Labels = int | np.ndarray | None
Strengths = float | np.ndarray | None


def style(
    encoder: Student,
    decoder: Student,
    x: Images,
    source: Labels,
    target: Labels,
    w: Strengths = None,
    num_steps: int | None = None,
) -> jax.Array:
    """The images of class `target` that share their noise with images x of class `source`.

    Encoded at the smallest w of the encoder, decoded at w. The bridge is DDIB (Su et al. 2022,
    arXiv:2203.08382); both directions distilled is Meng et al. (2023, arXiv:2210.03142).

    Args:
      encoder: an encoder stage, or a network that was trained at all times.
      decoder: anything that samples deterministically.
      x: images in [-1, 1] (num, h, w, c).
      source: what they show; None for networks without labels.
      target: what they are to show.
      w: see Student.sample.
      num_steps: of both, where they leave a choice; None is what they were made for.
    """
    z = encoder.encode(x, source, num_steps=_free(encoder, num_steps))
    return decoder.decode(z, target, w, _free(decoder, num_steps))


def roundtrip(
    encoder: Student, decoder: Student, x: Images, label: Labels, num_steps: int | None = None
) -> jax.Array:
    """The images x again, encoded and decoded as their own class, at the smallest w of both."""
    return style(encoder, decoder, x, label, label, num_steps=num_steps)


def psnr(x: Images, y: Images) -> np.ndarray:
    """10 log10(2^2 / mean (x - y)^2) of each image, in dB; 2 is the range of [-1, 1]."""
    difference = np.asarray(x, np.float64) - np.asarray(y, np.float64)
    return 10 * np.log10(4 / np.mean(difference**2, axis=tuple(range(1, difference.ndim))))


def sdedit(
    student: Student,
    key: jax.Array,
    x: Images,
    start: int,
    label: Labels = None,
    w: Strengths = None,
    num_steps: int | None = None,
) -> jax.Array:
    """Images x with noise at t = start / N, sampled from there as `label` at w.

    SDEdit: see editing.sdedit. `start` of 1 to N network calls; the rest is as in Student.sample.

    Raises:
      ValueError: for images, a start, label, w or number of steps that makes no sense.
    """
    n, x = int(_ddim(student, num_steps).num_steps), student.latents(x)
    if not 1 <= start <= n:
        raise ValueError(f"start is {start}; expected 1 to {n}, of the student's {n} steps")
    eps = noise_of(key, 0, len(x), student.shape)
    conditions = student.conditions(len(x), label, w)
    with student.precision():
        given = student.params, x, eps, conditions, n, start
        return student.codec.decode(_sdedit(student.network_spec, *given))


def inpaint(
    student: Student,
    key: jax.Array,
    x: Images,
    mask: np.ndarray,
    label: Labels = None,
    w: Strengths = None,
    num_steps: int | None = None,
) -> jax.Array:
    """Images x, filled in as `label` at w where mask is 1, by replacement: see editing.inpaint.

    Args:
      student: sampled with DDIM, in `num_steps` where it leaves a choice.
      key: of the noise.
      x: images in [-1, 1] (num, h, w, c); what lies under the mask makes no difference.
      mask: 0 or 1, (h, w) or anything that broadcasts against x.
      label: see Student.sample.
      w: see Student.sample.
      num_steps: see Student.sample.

    Raises:
      ValueError: for images, a label, w or number of steps that makes no sense.
    """
    if student.codec != PIXELS:
        raise ValueError(
            "a mask is of pixels, and this network works on latents: it cannot inpaint"
        )
    n, x = int(_ddim(student, num_steps).num_steps), student.latents(x)
    mask = mask[..., None] if mask.ndim == 2 else mask
    eps = noise_of(key, 0, len(x), student.shape)
    mask = jnp.broadcast_to(jnp.asarray(mask, jnp.float32), x.shape)
    conditions = student.conditions(len(x), label, w)
    with student.precision():
        given = student.params, x, mask, eps, conditions, n
        return _inpaint(student.network_spec, *given)


def _free(student: Student, num_steps: int | None) -> int | None:
    """The number of steps for a network that leaves a choice."""
    return num_steps if student.trained.all_times else None


def _ddim(student: Student, num_steps: int | None) -> Ddim:
    """The student's sampler in that number of steps, once it is known to edit."""
    if not student.trained.uses_ddim:
        name = student.manifest.lineage.method["name"]
        raise ValueError(
            f"{student.manifest.stage} is of method {name!r}; editing starts or looks in the "
            "middle of DDIM, so take a diffusion, guided or progressive stage"
        )
    return student.sampler(num_steps)


@functools.partial(jax.jit, static_argnames="network_spec")
def _sdedit(
    network_spec: NetworkSpec,
    params: Tree,
    x: Image,
    eps: Image,
    conditions: tuple[Cond, Guiding | None],
    num_steps: jax.Array | int,
    start: jax.Array | int,
) -> Image:
    """Traced in everything but shapes: one program for all strengths, classes and w."""
    cond, guiding = conditions
    denoiser = clipped(bound(network_spec, params, guiding))
    return editing.sdedit(denoiser, x, eps, cond, num_steps, start)


@functools.partial(jax.jit, static_argnames="network_spec")
def _inpaint(
    network_spec: NetworkSpec,
    params: Tree,
    x: Image,
    mask: Image,
    eps: Image,
    conditions: tuple[Cond, Guiding | None],
    num_steps: jax.Array | int,
) -> Image:
    cond, guiding = conditions
    denoiser = clipped(bound(network_spec, params, guiding))
    return editing.inpaint(denoiser, x, mask, eps, cond, num_steps)
