"""Editing of image arrays with finished networks.

Every function compiles once for all labels, all w and all numbers of steps.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion import editing
from distill_jax.diffusion.denoiser import NetworkSpec, clipped
from distill_jax.diffusion.noise import noise_of
from distill_jax.diffusion.trained import Sampler
from distill_jax.sampling.codecs import PIXELS
from distill_jax.sampling.conditioners import Requests
from distill_jax.sampling.drawing import Guiding, bound
from distill_jax.sampling.student import Student
from distill_jax.typing import Cond, Image, Tree

Images = jax.Array | np.ndarray  # (num, h, w, c) in [-1, 1].
Strengths = float | np.ndarray | None


def style(
    encoder: Student,
    decoder: Student,
    x: Images,
    source: Requests,
    target: Requests,
    w: Strengths = None,
    num_steps: int | None = None,
) -> jax.Array:
    """Translates images x of class or prompt `source` to `target` through their encoded noise.

    Images are encoded at the smallest w of the encoder and decoded at w. This is DDIB (Su et al.
    2022, arXiv:2203.08382); Meng et al. (2023, arXiv:2210.03142) distil both directions.

    Args:
      encoder: an encoder stage, or a network that was trained at all times.
      decoder: a network with a deterministic sampler.
      x: images in [-1, 1] (num, h, w, c).
      source: labels or prompts of x; None for networks without either.
      target: labels or prompts of the result.
      w: see Student.sample.
      num_steps: steps of the networks that were trained at all times; None is each one's own
        number.
    """
    z = encoder.encode(x, source, num_steps=_free(encoder, num_steps))
    return decoder.decode(z, target, w, _free(decoder, num_steps))


def roundtrip(
    encoder: Student, decoder: Student, x: Images, label: Requests, num_steps: int | None = None
) -> jax.Array:
    """Encodes and decodes images x as their own class, at the smallest w of both networks."""
    return style(encoder, decoder, x, label, label, num_steps=num_steps)


def psnr(x: Images, y: Images) -> np.ndarray:
    """Returns the PSNR of each image in dB, 10 log10(2^2 / mean (x - y)^2), for range [-1, 1]."""
    difference = np.asarray(x, np.float64) - np.asarray(y, np.float64)
    return 10 * np.log10(4 / np.mean(difference**2, axis=tuple(range(1, difference.ndim))))


def sdedit(
    student: Student,
    key: jax.Array,
    x: Images,
    start: int,
    label: Requests = None,
    w: Strengths = None,
    num_steps: int | None = None,
) -> jax.Array:
    """Adds noise to images x at t = start / N, and samples from there with `label` and w.

    SDEdit, see diffusion.editing.sdedit. `start` is a number of network calls, 1 to N; the other
    arguments are those of Student.sample.

    Raises:
      ValueError: for images, a start, label, w or number of steps outside the student's range.
    """
    n, x = int(_ddim(student, num_steps).num_steps), student.latents(x)
    if not 1 <= start <= n:
        raise ValueError(f"start is {start}; expected 1 to {n}, of the student's {n} steps")
    eps = noise_of(key, 0, len(x), student.shape)
    conditions = student.conditions(len(x), label, w)
    with student.precision():
        network = student.network_spec, student.params, conditions
        z = _edit(editing.sdedit, *network, x=x, eps=eps, num_steps=n, start=start)
        return student.codec.decode(z)


def inpaint(
    student: Student,
    key: jax.Array,
    x: Images,
    mask: np.ndarray,
    label: Requests = None,
    w: Strengths = None,
    num_steps: int | None = None,
) -> jax.Array:
    """Fills images x in where mask is 1, with `label` and w, see diffusion.editing.inpaint.

    Args:
      student: a network whose sampler is DDIM.
      key: key of the noise.
      x: images in [-1, 1] (num, h, w, c); values where mask is 1 do not matter.
      mask: 0 or 1, (h, w) or a shape that broadcasts against x.
      label: labels, or prompts for a network with captions.
      w: see Student.sample.
      num_steps: see Student.sample.

    With a codec, latents are filled in whose patch has a masked pixel, and the known pixels of the
    image are put back at the end.

    Raises:
      ValueError: for images, a label, w or number of steps outside the student's range.
    """
    n, known = int(_ddim(student, num_steps).num_steps), jnp.asarray(x)
    x = student.latents(x)
    asked = jnp.asarray(mask[..., None] if mask.ndim == 2 else mask, jnp.float32)
    hidden = _in_latents(jnp.broadcast_to(asked, (*known.shape[:3], 1)), x.shape)
    eps = noise_of(key, 0, len(x), student.shape)
    conditions = student.conditions(len(x), label, w)
    with student.precision():
        network = student.network_spec, student.params, conditions
        z = _edit(editing.inpaint, *network, x=x, mask=hidden, eps=eps, num_steps=n)
    if student.codec == PIXELS:
        return z
    return jnp.where(asked > 0, student.codec.decode(z), known)


def _in_latents(mask: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns the mask of latents (n, h, w, c): 1 where any pixel of their patch is masked.

    Args:
      mask: (n, height, width, 1), whose sides are multiples of those of the latents.
      shape: shape of the latents.
    """
    n, height, width, _ = mask.shape
    tiles = mask.reshape(n, shape[1], height // shape[1], shape[2], width // shape[2], 1)
    return jnp.broadcast_to(tiles.max(axis=(2, 4)), shape)


def _free(student: Student, num_steps: int | None) -> int | None:
    """Returns num_steps for a network that was trained at all times, else None."""
    return num_steps if student.trained.all_times else None


def _ddim(student: Student, num_steps: int | None) -> Sampler:
    """Returns the student's sampler with num_steps; raises ValueError unless it is DDIM."""
    if not student.trained.uses_ddim:
        name = student.manifest.lineage.method["name"]
        raise ValueError(
            f"{student.manifest.stage} was trained with method {name!r}; editing needs the steps "
            "of DDIM, so take a diffusion, guided or progressive stage"
        )
    return student.sampler(num_steps)


@functools.partial(jax.jit, static_argnames=("edit", "network_spec"))
def _edit(
    edit: Callable[..., Image],
    network_spec: NetworkSpec,
    params: Tree,
    conditions: tuple[Cond, Guiding | None],
    **given: Any,
) -> Image:
    """Runs diffusion.editing.sdedit; one program serves all starts, labels and w."""
    cond, guiding = conditions
    return edit(clipped(bound(network_spec, params, guiding)), cond=cond, **given)
