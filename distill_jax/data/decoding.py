"""Reading of pictures and arrays, whose files may come from anybody; nothing else opens them."""

import contextlib
import io
import os
import threading
from collections.abc import Callable, Iterator

import numpy as np
from etils import epath
from PIL import Image, UnidentifiedImageError

from distill_jax.runtime.files import read_bytes

# The formats of pictures and their suffixes. Pillow has some forty decoders, and one of them starts
# a program (EPS, Ghostscript). It tries only those that are named here, whatever the suffix says.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
ADVICE = "; repair or remove it"  # End of the message about a picture that cannot be read.
MAX_PIXELS = 2**26  # Limit of one picture: 8192x8192, or 200 MB as bytes.
MAX_BYTES = 2**28  # Limit of the file of one picture.
ORIENTATION = 0x0112  # The tag of EXIF.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The last bytes of a whole file. WebP has its length at the start, where Pillow compares it.
ENDS = {"GIF": b";", "JPEG": b"\xff\xd9", "PNG": b"\0\0\0\0IEND\xaeB`\x82", "WEBP": b""}


class _Room:
    """A limit of the pixels that all threads together decode at a time."""

    def __init__(self, pixels: int):
        self._free, self._changed = pixels, threading.Condition()

    @contextlib.contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        """Waits until there is room for so many pixels, and takes it."""
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_ROOM = _Room(2 * MAX_PIXELS)


def decode(
    data: bytes, name: str, finish: Callable[[np.ndarray], np.ndarray] = np.asarray
) -> np.ndarray:
    """Decodes a picture to uint8 pixels (h, w, 3), upright by the orientation of its EXIF.

    Grey is repeated, and transparency is dropped.

    Args:
      data: content of a file in one of FORMATS.
      name: name of the picture in messages.
      finish: function of the pixels, such as a resizer, whose result is returned. All threads
        together decode and finish at most 2 MAX_PIXELS at a time.

    Raises:
      ValueError: for a picture that cannot be decoded, has more than MAX_PIXELS or more than 8 bits
        per channel; it has the name.
    """
    with (
        _readable(name),
        _opened(io.BytesIO(data)) as image,
        _ROOM.taken(image.width * image.height),
    ):
        image.load()  # Else reading EXIF would load it, and its errors are not those of EXIF.
        return finish(np.asarray(_upright(image).convert("RGB")))


def check(file: io.BufferedIOBase, name: str) -> None:
    """Raises ValueError for a picture that `decode` would refuse, as far as its two ends tell.

    That finds what is no picture, is too large or is cut. The whole file is decoded only if its
    end is not that of its format. Pixels that are damaged in between are found by decoding.
    """
    with _readable(name), _opened(file) as image:
        end = ENDS.get(image.format or "")
        if end is not None:
            file.seek(-len(end), io.SEEK_END)
            if file.read() == end:
                return
        file.seek(0)
        data = file.read(MAX_BYTES)
    decode(data, name)


def read(path: epath.PathLike) -> bytes:
    """Returns the content of a picture's file.

    Raises:
      ValueError: for a pipe, a device or a folder, and for more than MAX_BYTES.
    """
    return read_bytes(path, MAX_BYTES)


@contextlib.contextmanager
def _opened(file: io.BufferedIOBase) -> Iterator[Image.Image]:
    """Opens a picture, reads its header and checks it; no pixels are decoded."""
    with Image.open(file, formats=FORMATS) as image:  # type: ignore[arg-type]  # It takes any binary file.
        pixels = image.width * image.height
        if pixels > MAX_PIXELS:
            raise ValueError(f"it has {pixels:,} pixels, expected at most {MAX_PIXELS:,}")
        if image.mode[0] in "IF":  # The modes of 16 and 32 bits.
            raise ValueError(f"its pixels are {image.mode}, expected 8 bits per channel")
        yield image


def _upright(image: Image.Image) -> Image.Image:
    """Turns and mirrors a picture as its EXIF says, if that can be read."""
    try:
        turn = TURNS.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # Damaged EXIF raises many kinds; the picture itself may be whole.
        turn = None
    return image if turn is None else image.transpose(turn)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turns whatever a decoder raises into one ValueError with the name of the picture."""
    try:
        yield
    except UnidentifiedImageError:
        problem = f"its format is none of {', '.join(FORMATS)}"
    except Image.DecompressionBombError:
        problem = f"it has more than {MAX_PIXELS:,} pixels"
    # Decoders raise OSError, SyntaxError, ValueError, NotImplementedError, MemoryError, ...
    except Exception as error:
        problem = " ".join(str(error).split())[:300] or type(error).__name__
    else:
        return
    raise ValueError(f"{name} cannot be read as an image ({problem}){ADVICE}")


def read_array(path: epath.Path, flag: str) -> np.ndarray:
    """Reads an array of numbers from a .npy file, never objects.

    Args:
      path: path of the file.
      flag: the flag that named it, for messages.

    Raises:
      ValueError: for what is no file, or no array of numbers of the size that it says.
    """
    if "://" not in str(path) and os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{flag}={path} is no regular file; expected a .npy array")
    with path.open("rb") as file:
        try:
            x = np.load(file, allow_pickle=False)
        # A header may raise SyntaxError, TokenError, MemoryError, OverflowError, ...
        except Exception as error:
            problem = " ".join(str(error).split())[:300] or type(error).__name__
            raise ValueError(
                f"{flag}={path} cannot be read as a .npy array ({problem}); save it with np.save"
            ) from error
        if not isinstance(x, np.ndarray) or x.dtype.kind not in "biuf":
            found = getattr(x, "dtype", "an archive of arrays")
            raise ValueError(f"{flag}={path} holds {found}; expected one array of numbers")
    return x
