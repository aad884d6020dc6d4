"""Images and masks from files of a person, for edits."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
from etils import epath

from distill_jax.data.decoding import SUFFIXES, decode, read, read_array
from distill_jax.diffusion.pixels import normalise
from distill_jax.runtime.files import absolute


def read_images(path: epath.Path, channels: int) -> np.ndarray:
    """Reads images (n, h, w, c) in [-1, 1] from a .npy file, or a folder's pictures by name.

    Args:
      path: path of the file or folder; hidden pictures are ignored.
      channels: number of channels, 1 or 3, that pictures are converted to; arrays stay as they are.

    Raises:
      ValueError: unless they are images of one size in [-1, 1] or 0 .. 255.
    """
    x = read_array(path, "--images") if path.suffix == ".npy" else _read_pictures(path, channels)
    x = normalise(x if x.dtype == np.uint8 else x.astype(np.float32))
    if x.ndim != 4 or not x.size or not (np.abs(x) <= 1).all():
        raise ValueError(
            f"--images={path} holds {x.dtype} of shape {x.shape}; expected (n, h, w, c), uint8 or "
            "in [-1, 1]"
        )
    return x


def _read_pictures(path: epath.Path, channels: int) -> np.ndarray:
    """Reads the pictures of a folder as uint8 (n, h, w, c), sorted by name."""
    if not path.is_dir():
        raise ValueError(f"--images={path} is no folder; expected one with pictures, or a .npy")
    files = sorted(
        file
        for file in path.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")
    )
    if not files:
        raise ValueError(f"--images={path} has no pictures with a suffix of {', '.join(SUFFIXES)}")
    arrays = [decode(read(file), str(file)) for file in files]
    sizes = sorted({array.shape[:2] for array in arrays})
    if len(sizes) > 1:
        shown = ", ".join(f"{width}x{height}" for height, width in sizes[:5])
        raise ValueError(f"--images={path} has {len(files)} pictures, not all of one size: {shown}")
    if channels == 1:  # Luminance; a grey picture keeps its values.
        arrays = [_grey(x)[..., None] for x in arrays]
    return np.stack(arrays)


def _grey(x: np.ndarray) -> np.ndarray:
    """Returns the luminance (h, w) of a picture."""
    return np.asarray(PIL.Image.fromarray(x).convert("L"))


def read_mask(name: str, shape: Sequence[int]) -> np.ndarray:
    """Returns the mask (h, w) of an image: 1 where inpainting draws, 0 elsewhere.

    Args:
      name: left, right, top, bottom or center (half the height and width); or a .npy file, not 0
        to draw, or a picture, bright to draw.
      shape: shape (h, w, c) of the image.

    Raises:
      ValueError: for another name, a file of another shape, and a mask that is 0 everywhere.
    """
    height, width = shape[:2]
    row, column = np.arange(height)[:, None], np.arange(width)[None]
    inside = (abs(2 * row + 1 - height) * 2 < height) & (abs(2 * column + 1 - width) * 2 < width)
    masks = {"left": column + 0 * row < width / 2, "right": column + 0 * row >= width / 2}
    masks |= {"top": row + 0 * column < height / 2, "bottom": row + 0 * column >= height / 2}
    masks["center"] = inside
    path = absolute(name)
    if path.suffix == ".npy":
        mask = read_array(path, "--mask") != 0
    elif path.suffix.lower() in SUFFIXES:
        mask = _grey(decode(read(path), name)) >= 128
    elif name in masks:
        mask = masks[name]
    else:
        raise ValueError(f"--mask={name} is none of {', '.join(masks)} and no FILE.npy or .png")
    if mask.shape != (height, width):
        raise ValueError(
            f"--mask={name} is of shape {mask.shape}; the images are {height}x{width}: expected "
            f"{(height, width)}"
        )
    if not mask.any():
        raise ValueError(f"--mask={name} marks no pixel; expected a mask that is not 0 everywhere")
    return mask.astype(np.float32)
