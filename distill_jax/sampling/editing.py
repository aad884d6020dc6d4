"""Editing of image arrays with finished networks.

Every function compiles once for all labels, all w and all numbers of steps. `sdedit`, `inpaint` and
`translate` are also methods of Student: `img2img`, `inpaint` and `translate`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion import editing
from distill_jax.diffusion.denoiser import NetworkSpec, clipped
from distill_jax.diffusion.noise import key_of, keys_of, noise_of
from distill_jax.diffusion.trained import Ddim, Heun, Renoise, Sampler
from distill_jax.sampling.codecs import PIXELS
from distill_jax.sampling.conditioners import Requests
from distill_jax.sampling.drawing import Guiding, bound
from distill_jax.sampling.inpainting import Images, as_mask, inpaints
from distill_jax.typing import Cond, Image, Tree

Strengths = float | np.ndarray | None
Finished = Any  # A Student; it has functions of this file as methods, so they cannot import it.


def style(
    encoder: Finished,
    decoder: Finished,
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
    encoder: Finished, decoder: Finished, x: Images, label: Requests, num_steps: int | None = None
) -> jax.Array:
    """Encodes and decodes images x as their own class, at the smallest w of both networks."""
    return style(encoder, decoder, x, label, label, num_steps=num_steps)


def psnr(x: Images, y: Images) -> np.ndarray:
    """Returns the PSNR of each image in dB, 10 log10(2^2 / mean (x - y)^2), for range [-1, 1]."""
    difference = np.asarray(x, np.float64) - np.asarray(y, np.float64)
    return 10 * np.log10(4 / np.mean(difference**2, axis=tuple(range(1, difference.ndim))))


def translate(
    decoder: Finished,
    encoder: Finished,
    x: Images,
    source: Requests,
    target: Requests,
    w: Strengths = None,
    start: int | None = None,
) -> jax.Array:
    """Encodes images x as `source` up to a time t, and decodes them from there as `target` with w.

    At t = 1 it is `style`. At an earlier t it is image to image like `sdedit`, but with the noise
    of the image itself instead of new noise, which keeps more of the image.

    Args:
      decoder: a network whose sampler is DDIM; at t = 1 any with a deterministic sampler.
      encoder: an encoder stage, or a network that was trained at all times, which takes its own
        number of steps.
      x: images in [-1, 1] (num, h, w, c).
      source: labels or prompts of x; None for networks without either.
      target: labels or prompts of the result.
      w: see Student.sample.
      start: t = start / N on the decoder's grid of N steps; None is t = 1.

    Raises:
      ValueError: for a start outside the grids, and for what `encode` and `decode` refuse.
    """
    if decoder.shape != encoder.shape:
        raise ValueError(
            f"the encoder works on {encoder.shape}, the decoder on {decoder.shape}; take both from "
            "one run"
        )
    if start is None:
        return decoder.decode(encoder.encode(x, source), target, w)
    if not decoder.trained.uses_ddim:
        raise _no_editing(decoder)
    n, m = decoder.trained.num_steps, int(encoder.encoding().num_steps)
    _check_start(start, n)
    if start * m % n:
        raise ValueError(
            f"start is {start} of {n} steps, which is between two of the encoder's {m}; expected a "
            "common time of both grids"
        )
    z = _run(
        encoder, editing.encode, source, None, encoder.latents(x), num_steps=m, stop=start * m // n
    )
    z = _run(decoder, editing.resume, target, w, z, num_steps=n, start=start)
    with decoder.precision():
        return decoder.codec.decode(z)


def sdedit(
    student: Finished,
    key: jax.Array | int,
    x: Images,
    start: int,
    label: Requests = None,
    w: Strengths = None,
    num_steps: int | None = None,
) -> jax.Array:
    """Adds noise to images x at a time of the student's sampler, and samples from there.

    SDEdit, see diffusion.editing.sdedit.

    Args:
      student: a network whose sampler is DDIM, or renoises at one resolution.
      key: key or seed of the noise.
      x: images in [-1, 1] (num, h, w, c).
      start: number of network calls, 1 to N; with DDIM it starts at t = start / N.
      label: labels, or prompts for a network with captions, of the result.
      w: see Student.sample.
      num_steps: see Student.sample.

    Raises:
      ValueError: for images, a start, label, w or number of steps outside the student's range.
    """
    sampler, x = _starting(student, num_steps), student.latents(x)
    n = int(sampler.num_steps)
    _check_start(start, n)
    eps = noise_of(key_of(key), 0, len(x), student.shape)
    if isinstance(sampler, Ddim):
        z = _run(student, editing.sdedit, label, w, x, eps=eps, num_steps=n, start=start)
    else:
        given = _renoising(key, eps, sampler.times[n - start :])
        z = _run(student, editing.renoise, label, w, x, mask=jnp.ones(()), **given)
    with student.precision():
        return student.codec.decode(z)


def inpaint(
    student: Finished,
    key: jax.Array | int,
    x: Images,
    mask: np.ndarray,
    label: Requests = None,
    w: Strengths = None,
    num_steps: int | None = None,
) -> jax.Array:
    """Fills images x in where mask is 1, with `label` and w, see diffusion.editing.inpaint.

    Args:
      student: a network whose sampler is DDIM, or renoises at one resolution.
      key: key or seed of the noise.
      x: images in [-1, 1] (num, h, w, c); values where mask is 1 do not matter.
      mask: 0 or 1, (h, w) or a shape that broadcasts against (num, h, w, 1).
      label: labels, or prompts for a network with captions.
      w: see Student.sample.
      num_steps: see Student.sample.

    With a codec, latents are filled in whose patch has a masked pixel, and the known pixels of the
    image are put back at the end. A network that takes masked images samples with this one, by any
    sampler, and the known pixels are put back too.

    Raises:
      ValueError: for images, a mask, label, w or number of steps outside the student's range.
    """
    known = jnp.asarray(x)
    if inpaints(student):
        masked = student.with_masked(known, mask)
        found = masked.sample(key, len(known), label, w, num_steps)
        return jnp.where(as_mask(mask, known) > 0, found, known)
    sampler = _starting(student, num_steps)
    x, asked = student.latents(known), as_mask(mask, known)
    hidden = _in_latents(jnp.broadcast_to(asked, (*known.shape[:3], 1)), x.shape)
    eps = noise_of(key_of(key), 0, len(x), student.shape)
    if isinstance(sampler, Ddim):
        n = int(sampler.num_steps)
        z = _run(student, editing.inpaint, label, w, x, mask=hidden, eps=eps, num_steps=n)
    else:
        given, x = _renoising(key, eps, sampler.times), jnp.where(hidden > 0, 0.0, x)
        z = _run(student, editing.renoise, label, w, x, mask=hidden, **given)
    if student.codec == PIXELS:
        return z
    with student.precision():
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


def _free(student: Finished, num_steps: int | None) -> int | None:
    """Returns num_steps for a network that was trained at all times, else None."""
    return num_steps if student.trained.all_times else None


def _check_start(start: int, num_steps: int) -> None:
    if not 1 <= start <= num_steps:
        raise ValueError(
            f"start is {start}; expected 1 to {num_steps}, of the student's {num_steps} steps"
        )


def _starting(student: Finished, num_steps: int | None) -> Sampler:
    """Returns the student's sampler, which can start from noisy images; raises ValueError."""
    sampler = student.sampler(num_steps)
    alone = isinstance(sampler, Renoise) and {*sampler.resolutions} <= {student.shape[0]}
    if not (student.trained.uses_ddim or alone):
        raise _no_editing(student)
    return Ddim(sampler.num_steps) if isinstance(sampler, Heun) else sampler


def _no_editing(student: Finished) -> ValueError:
    name = student.manifest.lineage.method["name"]
    return ValueError(
        f"{student.manifest.stage} was trained with method {name!r}; editing needs the steps of "
        "DDIM, or calls that renoise at one resolution, so take a diffusion, guided, progressive, "
        "SiD or DMD2 stage"
    )


def _renoising(
    key: jax.Array | int, eps: jax.Array, times: tuple[float, ...]
) -> dict[str, jax.Array]:
    """Returns arguments of diffusion.editing.renoise: keys, the first noise, times of the calls."""
    keys = keys_of(key_of(key), jnp.arange(len(eps)))
    return {"key": keys, "eps": eps, "times": jnp.asarray(times, eps.dtype)}


def _run(
    student: Finished,
    edit: Callable[..., Image],
    label: Requests,
    w: Strengths,
    x: Images,
    **given: Any,
) -> jax.Array:
    """Runs a function of diffusion.editing with the student's network, label and w."""
    conditions = student.conditions(len(x), label, w)
    with student.precision():
        return _edit(edit, student.network_spec, student.params, conditions, x=x, **given)


@functools.partial(jax.jit, static_argnames=("edit", "network_spec"))
def _edit(
    edit: Callable[..., Image],
    network_spec: NetworkSpec,
    params: Tree,
    conditions: tuple[Cond, Guiding | None],
    **given: Any,
) -> Image:
    """Runs a function of diffusion.editing; one program serves all starts, labels and w."""
    cond, guiding = conditions
    denoiser = bound(network_spec, params, guiding)
    if edit not in (editing.encode, editing.renoise):  # As in ddim_encode and samplers.renoise.
        denoiser = clipped(denoiser)
    return edit(denoiser=denoiser, cond=cond, **given)
