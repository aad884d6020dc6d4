"""The devices that a run is planned for, and their speed."""

import re
from typing import NamedTuple

import jax

from distill_jax.runtime.options import shown
from distill_jax.runtime.registry import suggestion

# TFLOP/s of one device in dense bfloat16 products, and a pattern of its name in JAX. From NVIDIA's
# data sheets (SXM modules) and Google Cloud's pages "TPU v4", "TPU v5e", "TPU v5p" and "TPU v6e".
DEVICES = {
    "a100": (312, "NVIDIA A100"),
    "h100": (989, "NVIDIA H100 80GB HBM"),
    "h200": (989, "NVIDIA H200$"),
    "v4": (275, "TPU v4$"),
    "v5e": (197, "TPU v5( lite|e)$"),
    "v5p": (459, "TPU v5p?$"),
    "v6e": (918, "TPU v6( lite|e)$"),
}
MAX_DEVICES, MAX_PEAK = 1_000_000, 1e6  # A peak in TFLOP/s.


class Target(NamedTuple):
    """The devices that a run is planned for.

    Attributes:
      count: number of devices.
      name: name of a device.
      peak: TFLOP/s of a device, None if unknown.
      utilisation: assumed fraction of the peak that training reaches.
    """

    count: int  # type: ignore[assignment]  # Hides tuple.count, which nobody calls.
    name: str
    peak: float | None
    utilisation: float = 0.4


def target(text: str | None) -> Target:
    """Parses a flag, COUNTxDEVICE or COUNTxDEVICE@UTILISATION; None is the devices here.

    DEVICE is a key of DEVICES or a peak in TFLOP/s: 64xv4, 8xh100@0.35, 8x2250.

    Raises:
      ValueError: for a text of another form.
    """
    if text is None:
        kind = jax.devices()[0].device_kind
        peaks = [peak for peak, pattern in DEVICES.values() if re.match(pattern, kind)]
        return Target(jax.device_count(), kind, *(peaks or [None]))
    match = re.fullmatch(r"(\d{1,9})x(\w{1,40}|\d+\.\d+)(?:@([\d.]+))?", text.lower())
    number, name, utilisation = match.groups("0.4") if match else ("0", "", "0.4")
    known = name in DEVICES
    hint = "" if known else suggestion(name, DEVICES)
    peak = DEVICES[name][0] if known else _number(name)
    planned = Target(int(number), name if known else "devices", peak, _number(utilisation))
    fits = 0 < planned.count <= MAX_DEVICES and 0 < (planned.peak or 0) <= MAX_PEAK
    if not (fits and 0 < planned.utilisation <= 1):
        raise ValueError(
            f"--plan_for is {shown(text)}; expected COUNTxDEVICE, such as 8xh100, with DEVICE one "
            f"of {', '.join(DEVICES)} or a peak in TFLOP/s up to {MAX_PEAK:g}, and @0.35 "
            f"after it for another fraction of the peak than 0.4{hint}"
        )
    return planned


def _number(text: str) -> float:
    """Returns the number in a text, or 0 if it is not a number."""
    return float(text) if re.fullmatch(r"\d*\.?\d+", text) else 0.0


def hours(total: int | float, where: Target) -> float:
    """Returns the hours for `total` FLOPs: total / (count peak utilisation)."""
    return total / (where.count * where.peak * 1e12 * where.utilisation) / 3600
