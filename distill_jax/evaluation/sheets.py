"""Sheets of images with captions, and files of pictures: PNG, JPEG, WebP, and moving GIF."""

import io
import json
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.Image
from etils import epath
from PIL import ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from distill_jax.diffusion.pixels import to_uint8
from distill_jax.runtime import distributed
from distill_jax.runtime.files import replace

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".gif": "GIF"}
SIDE = 48  # Smallest side of an image in a sheet, in pixels.
FONT, LINES, GAP = 11, 3, 1  # Height of the letters, lines of a caption, pixels around an image.
FRAME, LAST = 250, 1500  # Milliseconds of a frame, and of the last one.
DESCRIPTION = 0x010E  # The tag of EXIF.

Picture = PIL.Image.Image
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def grid(x: np.ndarray, columns: int, side: int = SIDE) -> Picture:
    """Returns images (n, h, w, c), c 1 or 3, in [-1, 1] or uint8, in rows of `columns`.

    Images smaller than `side` pixels are enlarged by a whole factor, without smoothing.
    """
    rows = -(-len(x) // columns)
    black = 0 if x.dtype == np.uint8 else -1
    blank = np.full((rows * columns - len(x), *x.shape[1:]), black, x.dtype)
    cells = np.concatenate([x, blank]).reshape(rows, columns, *x.shape[1:])
    return sheet([list(row) for row in cells], side=side)


def sheet(
    rows: Sequence[Sequence[np.ndarray]],
    captions: Sequence[Sequence[str]] = (),
    names: Sequence[str] = (),
    side: int = SIDE,
) -> Picture:
    """Returns rows of images, with captions below them and names above their rows.

    Args:
      rows: images (h, w, c), c 1 or 3, in [-1, 1] or uint8, of any sizes; rows may be shorter than
        the first.
      captions: one for each image; () for none.
      names: one for each row; () for none.
      side: side that smaller images are enlarged to, by a whole factor, without smoothing.
    """
    largest = max(max(image.shape[:2]) for row in rows for image in row)
    cell = largest * max(1, side // largest) + 2 * GAP
    font = ImageFont.load_default(FONT)
    below = [[_lines(text, font, cell) for text in row] for row in captions] or [[] for _ in rows]
    heights = [FONT * 4 // 3 * max(map(len, texts), default=0) for texts in below]
    above = FONT * 3 // 2 if names else 0
    size = cell * max(map(len, rows)), sum(heights) + (cell + above) * len(rows)
    colours = any(image.shape[-1] == 3 for row in rows for image in row)
    picture = PIL.Image.new("RGB" if colours or captions or names else "L", size, "white")
    pen, y = ImageDraw.Draw(picture), 0
    for i, (row, texts) in enumerate(zip(rows, below, strict=True)):
        if names:
            pen.text((GAP, y), names[i], "black", font)
        y += above
        for j, image in enumerate(row):
            inner = cell - 2 * GAP
            picture.paste(_enlarged(image, inner), (j * cell + GAP, y + GAP))
        y += cell
        for j, lines in enumerate(texts):
            pen.multiline_text((j * cell + GAP, y), "\n".join(lines), "black", font, spacing=1)
        y += heights[i]
    return picture


def save(
    path: epath.PathLike,
    frames: Picture | Sequence[Picture],
    facts: Mapping[str, str] | None = None,
) -> None:
    """Writes a picture, or the frames of a .gif, from process 0; `facts` are texts in the file.

    Raises:
      ValueError: for a name that ends in none of FORMATS.
    """
    path, frames = epath.Path(path), [frames] if isinstance(frames, Picture) else list(frames)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path.name} ends in none of {', '.join(FORMATS)}")
    options: dict[str, object] = {}
    if kind == "PNG":
        texts = PngInfo()
        for name, fact in (facts or {}).items():
            texts.add_itxt(name, fact)
        options["pnginfo"] = texts
    elif kind == "GIF":
        times = [*[FRAME] * (len(frames) - 1), LAST]
        options |= {"save_all": True, "append_images": frames[1:], "duration": times, "loop": 0}
        options["comment"] = json.dumps(facts or {}).encode()
    else:
        exif = PIL.Image.Exif()
        exif[DESCRIPTION] = json.dumps(facts or {})
        options |= {"exif": exif, "quality": 95}
    file = io.BytesIO()
    frames[0].save(file, format=kind, **options)
    if distributed.first():
        replace(path, file.getvalue())


def _enlarged(image: np.ndarray, side: int) -> Picture:
    """Returns an image, enlarged by a whole factor to at most `side` pixels."""
    pixels = image if image.dtype == np.uint8 else to_uint8(image)
    picture = PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    factor = max(1, side // max(picture.size))
    size = picture.width * factor, picture.height * factor
    return picture.resize(size, PIL.Image.Resampling.NEAREST)


def _lines(text: str, font: Font, width: int) -> list[str]:
    """Returns a caption in at most LINES lines of `width` pixels; the rest of it is cut off."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    shown = lines[:LINES]
    for i, line in enumerate(shown):
        cut = i == LINES - 1 and len(lines) > LINES
        while line and font.getlength(line + "..." * cut) > width:
            line, cut = line[:-1], True
        shown[i] = line + "..." * cut
    return shown
