"""Chroma and contrast of images, in CIELAB."""

import numpy as np

# From linear sRGB to XYZ, IEC 61966-2-1. Each row is divided by its sum, the white point D65.
XYZ = np.asarray(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
XYZ /= XYZ.sum(axis=1, keepdims=True)
_V = np.arange(256) / 255
LINEAR = np.where(_V <= 0.04045, _V / 12.92, ((_V + 0.055) / 1.055) ** 2.4).astype(np.float32)
SIDE = 64  # From twice this side on, only every k-th row and column is measured.
BLOCK = 2**18  # Pixels that are converted at a time.


def lab(x: np.ndarray) -> np.ndarray:
    """Returns L*, a*, b* (..., 3), float32, of sRGB colours (..., 3), uint8, for the white D65.

    CIE 1976 L*a*b* (ISO/CIE 11664-4): L* is the lightness from 0 (black) to 100 (white), and
    a* = b* = 0 is grey.
    """
    ratio = LINEAR[x] @ XYZ.T.astype(np.float32)
    edge = 6 / 29
    linear = ratio / (3 * edge**2) + 4 / 29
    f = np.where(ratio > edge**3, np.cbrt(ratio), linear)
    parts = 116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])
    return np.stack(parts, axis=-1)


def colour_scores(x: np.ndarray) -> dict[str, float]:
    """Returns "chroma" and "contrast", in units of CIELAB; grey images have no "chroma".

    Chroma is the mean over pixels of C*ab = sqrt(a*^2 + b*^2): 0 for grey, 105 for the red of sRGB.
    Contrast is the RMS contrast (Peli 1990, doi:10.1364/JOSAA.7.002032) of the lightness: the
    standard deviation of L* over the pixels of an image, as a mean over images; at most 50.

    Args:
      x: images (n, h, w, 1 or 3), uint8. Other numbers of channels are no colours, and one pixel
        is no image: then the result is {}.
    """
    count, height, width, channels = x.shape
    if channels not in (1, 3) or height * width == 1:
        return {}
    step = max(1, min(height, width) // SIDE)
    thin = x[:, ::step, ::step]
    size = max(1, BLOCK // (thin.shape[1] * thin.shape[2]))
    chroma, contrast = 0.0, 0.0
    for i in range(0, count, size):
        part = thin[i : i + size]
        colours = lab(part if channels == 3 else np.repeat(part, 3, axis=-1))
        contrast += float(colours[..., 0].std(axis=(1, 2), dtype=np.float64).sum())
        both = np.hypot(colours[..., 1], colours[..., 2])
        chroma += float(both.mean(axis=(1, 2), dtype=np.float64).sum())
    found = {"chroma": chroma / count, "contrast": contrast / count}
    return found if channels == 3 else {"contrast": found["contrast"]}
