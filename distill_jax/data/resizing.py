"""Resizing of pictures to square images in the ways that published networks were trained with."""

import functools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image

Resizer = Callable[[np.ndarray, int], np.ndarray]


def area(x: np.ndarray, size: int) -> np.ndarray:
    """Resizes the central square; each new pixel is the mean over its area, rounded.

    Salimans & Ho (2022), released datasets.py, ImageNet; they do not round the means.
    """
    x = central_square(x)
    if len(x) == size:
        return x
    rows, shares = _overlaps(len(x), size)
    for _ in range(2):  # A sum of weighted rows, because a matrix product starts more threads.
        x = sum(share[:, None, None] * x[row] for row, share in zip(rows, shares, strict=True))
        x = x.swapaxes(0, 1)
    return np.rint(x).astype(np.uint8)


def triangle(x: np.ndarray, size: int) -> np.ndarray:
    """Resizes the central square by bilinear interpolation with antialiasing, rounded.

    A new pixel is a mean of the pixels at a distance from its centre of at most its width, weighted
    by 1 - distance / width. Salimans & Ho (2022), released datasets.py, LSUN:
    tf.image.resize(antialias=True), whose result they do not round.
    """
    x = central_square(x)
    if len(x) == size:
        return x
    # Floats, because Pillow also rounds bytes between rows and columns.
    channels = (Image.fromarray(channel.astype(np.float32)) for channel in np.moveaxis(x, -1, 0))
    resized = (channel.resize((size, size), Image.Resampling.BILINEAR) for channel in channels)
    x = np.stack([np.asarray(channel) for channel in resized], axis=-1)
    return np.rint(x).clip(0, 255).astype(np.uint8)


def adm(x: np.ndarray, size: int) -> np.ndarray:
    """Halves a picture by 2x2 means while it is twice too large, then resizes it bicubically.

    Then it takes the central square. Dhariwal & Nichol (2021), released image_datasets.py,
    center_crop_arr; EDM's tool for ImageNet ("center-crop-dhariwal") does the same. Every step is
    rounded to bytes.
    """
    image = Image.fromarray(x)
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    shape = round(image.width * scale), round(image.height * scale)
    image = image.resize(shape, Image.Resampling.BICUBIC)
    x = np.asarray(image)
    top, left = (x.shape[0] - size) // 2, (x.shape[1] - size) // 2
    return x[top : top + size, left : left + size]


RESIZERS: dict[str, Resizer] = {"area": area, "triangle": triangle, "adm": adm}


def central_square(x: np.ndarray) -> np.ndarray:
    """Crops (h, w, c) to its middle along the longer side; from h // 2 - w // 2 if h > w."""
    n = min(x.shape[:2])
    top, left = (side // 2 - n // 2 for side in x.shape[:2])
    return x[top : top + n, left : left + n]


@functools.lru_cache(maxsize=64)
def _overlaps(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows out of n that overlap each of `size` rows of equal total length, and shares.

    Returns:
      (k, size) integers and (k, size) float32, whose sum over k is 1.
    """
    edges = np.arange(size + 1) * n / size
    row = np.floor(edges[:-1]).astype(int) + np.arange(math.ceil(n / size) + 1)[:, None]
    overlap = np.minimum(row + 1, edges[1:]) - np.maximum(row, edges[:-1])
    shares = np.maximum(overlap, 0) * size / n
    used = shares.any(axis=1)
    return np.minimum(row, n - 1)[used], shares[used].astype(np.float32)
