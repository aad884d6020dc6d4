"""Pictures and arrays from anybody are decoded by few decoders, within limits, or refused."""

import io
import os
import struct
import threading
import zlib

import numpy as np
import pytest
from etils import epath
from PIL import Image

from distill_jax.data import decoding
from distill_jax.data.decoding import FORMATS, MAX_PIXELS, ORIENTATION, check, decode, read_array
from tests.data.pictures import picture, png


def saved(kind, mode="RGB", **options):
    buffer = io.BytesIO()
    Image.fromarray(picture(0, 24, 32)).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def forged(width, height, data=b"", extra=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), extra, chunk(b"IDAT", data), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
BOMB = b"x\0\0" + zlib.compress(b"\0" * (100 << 20), 9)
NOT_OURS = "its format is none of BMP, GIF, JPEG, PNG, WEBP"
HOSTILE = {
    "a program for Ghostscript": (EPS, NOT_OURS),
    **{f"a {kind}": (saved(kind), NOT_OURS) for kind in ("TIFF", "ICO", "PPM", "TGA", "SGI")},
    "nothing": (b"", NOT_OURS),
    "too many pixels": (forged(8193, 8192), r"it has 67,117,056 pixels, expected at most 67,108"),
    "far too many pixels": (forged(10**5, 10**5), "it has more than 67,108,864 pixels"),
    "no pixels": (forged(0, 0), NOT_OURS),
    "pixels that are no stream": (forged(16, 16, b"garbage" * 10), "broken data stream"),
    "a profile that grows": (
        forged(16, 16, extra=chunk(b"iCCP", BOMB)),
        "Decompressed data too large",
    ),
    "a text that grows": (
        forged(16, 16, extra=chunk(b"zTXt", BOMB)),
        "Decompressed data too large",
    ),
    "a WebP without a picture": (b"RIFF\x10\0\0\0WEBPVP8 \0\0\0\0", r".*"),
    "a BMP of negative height": (
        b"BM" + bytes(12) + struct.pack("<IiiHHIIiiII", 40, 30000, -30000, 1, 24, *[0] * 6),
        "it has more than",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_picture_of_ours_is_one_message(kind, tmp_path, monkeypatch):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    data, problem = HOSTILE[kind]
    message = rf"^x.png cannot be read as an image \({problem}.*\); repair or remove it$"
    with pytest.raises(ValueError, match=message):
        decode(data, "x.png")
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_is_read_and_one_that_is_cut_is_found_at_its_ends(kind, monkeypatch):
    data = saved(kind)
    assert decode(data, "x").shape == (24, 32, 3)
    for length in (300, len(data) // 2):
        with pytest.raises(ValueError, match="x cannot be read as an image"):
            check(io.BytesIO(data[:length]), "x")
    if kind != "BMP":  # It says its end nowhere, and is decoded.
        monkeypatch.setattr(decoding, "decode", pytest.fail)
    check(io.BytesIO(data), "x")


def test_bytes_after_the_end_of_a_picture_do_no_harm():
    for kind in FORMATS:
        check(io.BytesIO(saved(kind) + bytes(7)), kind)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(kind, orientation):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    x = decode(saved(kind, exif=exif.tobytes(), **lossless), "x").astype(float)
    stored = (
        picture(0, 24, 32).astype(float)
        if kind != "JPEG"
        else decode(saved(kind, **lossless), "x").astype(float)
    )
    # EXIF 2.32, 4.6.4: where the 0th row and the 0th column of the file are in the picture.
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: stored.swapaxes(0, 1)[:, ::-1],
        7: stored.swapaxes(0, 1)[::-1, ::-1],
        8: stored.swapaxes(0, 1)[::-1],
    }[orientation]
    np.testing.assert_array_equal(x, upright)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_turns_nothing():
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        np.testing.assert_array_equal(
            decode(saved("JPEG", exif=exif), "x"), decode(saved("JPEG"), "x")
        )


def test_pixels_of_more_than_8_bits_are_refused():
    buffer = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(buffer, "PNG")
    with pytest.raises(ValueError, match=r"deep.png .* are I;16, expected 8 bits per channel"):
        decode(buffer.getvalue(), "deep.png")


def test_threads_share_one_limit_of_pixels(monkeypatch):
    monkeypatch.setattr(decoding, "_ROOM", decoding._Room(2 * 80))
    inside, most, gate = [], [], threading.Semaphore(0)

    def finish(x):
        inside.append(1)
        most.append(len(inside))
        gate.acquire(timeout=0.2)
        inside.pop()
        return x

    threads = [
        threading.Thread(target=decode, args=(png(picture(0)), "x", finish)) for _ in "abcde"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert len(most) == 5
    assert max(most) == 2  # Pictures of 80 pixels.
    assert MAX_PIXELS < 2**27


def npy(header, data=b""):
    return b"\x93NUMPY\x02\0" + struct.pack("<I", len(header) + 1) + header + b"\n" + data


SHAPE = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"
ARRAYS = {
    "huge": npy((SHAPE % "(1000000, 1000000, 8, 1)").encode()),
    "negative": npy((SHAPE % "(-1,)").encode()),
    "of objects": npy(
        SHAPE.replace("<f4", "|O").encode() % b"(1,)", b"cos\nsystem\n(S'false'\ntR."
    ),
    "code": npy(b"__import__('os').system('false')"),
    "nested": npy(b"(" * 5000),
    "nested numbers": npy(b"-" * 9000 + b"1"),
    "of a tab": npy(b"{'descr': '<f4',\n\t\t 'x"),
    "a pickle": b"\x80\x04cos\nsystem\n.",
    "a zip": b"PK\x03\x04" + bytes(50),
    "empty": b"",
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_what_is_no_array_is_one_message(kind, tmp_path):
    path = epath.Path(tmp_path / "x.npy")
    path.write_bytes(ARRAYS[kind])
    with pytest.raises(
        ValueError, match=r"^--mask=.*x.npy cannot be read as a .npy array .*np.save"
    ):
        read_array(path, "--mask")


def test_pipes_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "x")
    with pytest.raises(ValueError, match="--images=.*/x is no regular file"):
        read_array(epath.Path(tmp_path / "x"), "--images")
    with pytest.raises(ValueError, match="/x is no regular file"):
        decoding.read(tmp_path / "x")
