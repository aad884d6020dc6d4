"""Measures a dataset's power spectrum, and proposes times and resolutions of an SwD student.

With config.codec the spectrum is that of the latents.

python -m distill_jax.spectrum --config=configs/digits_guided.py --resolutions=4,8 --num_steps=2
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from matplotlib.figure import Figure

from distill_jax.data import DATASETS, Dataset
from distill_jax.diffusion.pixels import normalise
from distill_jax.diffusion.schedule import SCHEDULES, Schedule
from distill_jax.diffusion.spectrum import propose, rapsd, sufficient_time
from distill_jax.runtime import logging
from distill_jax.runtime.app import needed, numbers, run_app
from distill_jax.runtime.config_file import define_config
from distill_jax.runtime.files import absolute
from distill_jax.runtime.options import MAX_NUM, MAX_STEPS
from distill_jax.runtime.registry import EVERYTHING, build
from distill_jax.sampling.codecs import CODECS, Fitted, load_codec
from distill_jax.sampling.loading import find_final

BATCH = 32  # Images that are encoded at a time.


def define_flags() -> None:
    """Defines the flags of the command; not at import, because commands share flag names."""
    define_config("Config file, FILE.py or FILE.py:size.")
    flags.DEFINE_list("resolutions", None, "Sides of the smaller images, by default half the side.")
    flags.DEFINE_integer(
        "num_steps",
        2,
        "Number of network calls of the student.",
        lower_bound=1,
        upper_bound=MAX_STEPS,
    )
    flags.DEFINE_integer(
        "num", 5000, "Number of training images to measure.", lower_bound=1, upper_bound=MAX_NUM
    )
    flags.DEFINE_string("out", "spectrum.png", "File of the figure, a .png.")


def main() -> None:
    """Prints the proposed times and resolutions, and draws the spectrum."""
    values = flags.FLAGS
    config = needed("config", ", such as --config=configs/digits_guided.py")
    out = epath.Path(values.out)
    if out.suffix != ".png":
        raise ValueError(f"--out={out} does not end in .png")
    schedule = build(
        SCHEDULES, "schedule", config.schedule.to_dict(), allow=EVERYTHING, makes=Schedule
    )
    dataset = build(DATASETS, "dataset", config.data.to_dict(), allow=EVERYTHING, makes=Dataset)
    x = dataset.images("train", values.num).x
    x = encoded(config.codec.to_dict(), dataset, x) if config.codec else normalise(x)
    own = x.shape[1]
    resolutions = sorted({*(numbers("resolutions", int) or [own // 2]), own})
    power = rapsd(x)
    times, chosen = propose(power, schedule, resolutions, values.num_steps)
    with out.open("wb") as file:
        figure(power, schedule, resolutions, times).savefig(file, dpi=110)
    logging.show(table(power, schedule, resolutions))
    logging.show(f"\ntimes={tuple(round(time, 4) for time in times)},\nsides={chosen},\n\n{out}")


def encoded(options: Mapping[str, Any], dataset: Dataset, images: np.ndarray) -> np.ndarray:
    """Returns the latents (n, h, w, c) of images, by a codec that is fitted to them or finished.

    Args:
      options: the config's codec.
      dataset: the dataset of the images.
      images: images (n, h, w, c), uint8 or in [-1, 1].
    """
    if "name" in options:
        kind = build(CODECS, "codec", options)
        codec = Fitted(kind.described(), kind.fit(normalise(images[: kind.images])), dataset.spec)
    else:
        codec = load_codec(find_final(absolute(options["path"])))
    starts = range(0, len(images), BATCH)
    return np.concatenate(
        [codec.encode(jnp.asarray(normalise(images[i : i + BATCH]))) for i in starts]
    )


def table(power: np.ndarray, schedule: Schedule, resolutions: Sequence[int]) -> str:
    """Returns a table: the time and noise level sigma / alpha from which each side suffices."""
    rows = []
    for side in resolutions:
        time = sufficient_time(power, schedule, side)
        level = np.sqrt(power[side // 2 + 1 :].max(initial=0.0))
        rows.append((side, f"{level:.3g}", f"{time:.3f}" if time <= 1 else "never"))
    return logging.table(("side", "sigma / alpha", "suffices from t"), rows)


def figure(
    power: np.ndarray, schedule: Schedule, resolutions: Sequence[int], times: Sequence[float]
) -> Figure:
    """Returns the figure of the data's power P(k), the noise level at each time, and each side."""
    drawn = Figure(figsize=(5.5, 4.2), layout="constrained")
    axis = drawn.subplots()
    k = np.arange(1, len(power))
    axis.plot(k, power[1:], "k-o", markersize=3, label="data")
    for i, time in enumerate(times[1:]):
        noise = float(jnp.exp(-schedule.logsnr(jnp.asarray(time))))
        label = f"noise / signal at t = {time:.3g}"
        axis.axhline(noise, color=f"C{i}", linestyle="--", label=label)
    for side in resolutions[:-1]:
        axis.axvline(side / 2, color="gray", linestyle=":")
        axis.annotate(f" {side}", (side / 2, power[1:].max()), color="gray")
    axis.set(xscale="log", yscale="log", xlabel="periods per image k", ylabel="power P(k)")
    axis.set_xticks([2**i for i in range(int(np.log2(k[-1])) + 1)])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return drawn


if __name__ == "__main__":
    define_flags()
    run_app(main)
