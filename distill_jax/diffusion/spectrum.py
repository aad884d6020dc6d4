"""Power spectra of images, and the smallest image size that suffices at a noise level.

Images have little power at high frequencies, and noise has equal power at all. So at every time
there is a frequency above which z_t is only noise. A small x without those frequencies, enlarged
and noised to that time, is as good as a full one (Starodubcev et al. 2026, arXiv:2503.16397,
section 3.1).
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from distill_jax.diffusion.schedule import Schedule

CHUNK = 256  # Images per Fourier transform.


def rapsd(x: np.ndarray) -> np.ndarray:
    """Returns the radially averaged power spectrum P(k), k = 0 .. h // 2, of images (n, h, h, c).

    P(k) is the mean of |FFT(x)|^2 / h^2 over images, channels and the frequencies whose distance
    from 0 rounds to k periods per image. White noise of variance 1 has P = 1 at every k. The
    corners k > h / 2, whose rings are incomplete, are left out.

    Raises:
      ValueError: for images that are not square.
    """
    if x.ndim != 4 or x.shape[1] != x.shape[2]:
        raise ValueError(f"images are {x.shape[1:]}; a spectrum by radius is of square (h, h, c)")
    side = x.shape[1]
    frequency = np.fft.fftfreq(side) * side
    ring = np.rint(np.hypot(frequency[:, None], frequency)).astype(int)
    power = np.zeros((side, side))
    for start in range(0, len(x), CHUNK):
        transformed = np.fft.fft2(x[start : start + CHUNK].astype(np.float64), axes=(1, 2))
        power += np.sum(np.abs(transformed) ** 2, axis=(0, 3))
    power /= len(x) * x.shape[3] * side**2
    return np.array([power[ring == k].mean() for k in range(side // 2 + 1)])


def sufficient_time(power: np.ndarray, schedule: Schedule, side: int) -> float:
    """Returns the smallest time at which an x of `side` pixels holds all of z_t that is not noise.

        alpha_t^2 P(k) <= sigma_t^2   for every k > side / 2

    z_t is at full size. Noise hides more of a smaller z_t, since shrinking x by m divides P by m^2.
    The time is 0 for the images' own side, and infinity if even t = 1 has too little noise.

    Args:
      power: P(k), k = 0 .. h / 2, of clean images of side h.
      schedule: the noise schedule.
      side: side of the smaller x, at most h.
    """
    beyond = power[side // 2 + 1 :]
    if not len(beyond) or beyond.max() == 0:
        return 0.0
    time = float(schedule.time(jnp.asarray(-np.log(beyond.max()))))
    return max(time, 0.0) if time <= 1 else np.inf


def propose(
    power: np.ndarray, schedule: Schedule, resolutions: Sequence[int], num_steps: int
) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Proposes times 1, (N - 1) / N, ..., 1 / N and resolutions of a scale-wise student.

    The x of step k is enlarged and noised to the time of step k + 1. So step k gets the smallest
    side that suffices at that time: the frequencies it lacks are then below the noise. The last
    step has the largest side.

    Raises:
      ValueError: if resolutions do not grow to the side of the images, or num_steps is below 1.
    """
    own = 2 * (len(power) - 1)
    if (
        list(resolutions) != sorted({*resolutions})
        or not resolutions
        or resolutions[0] < 1
        or resolutions[-1] // 2 != own // 2
    ):
        raise ValueError(
            f"resolutions are {tuple(resolutions)}; expected growing ones, the last one {own}"
        )
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; expected at least 1")
    times = tuple((num_steps - k) / num_steps for k in range(num_steps))
    enough = [sufficient_time(power, schedule, side) for side in resolutions]
    fits = [
        next(side for side, least in zip(resolutions, enough, strict=True) if least <= time)
        for time in times[1:]
    ]
    return times, (*fits, resolutions[-1])
