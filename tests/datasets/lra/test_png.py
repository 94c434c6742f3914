"""PNG files of every kind that there is: read as Pillow reads whole ones, or refused."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from elm_neuro.datasets.lra._png import decoded_png

SIZE = 11  # no multiple of 8: rows of few bits end within a byte, and passes are of unequal sizes
KINDS = {  # bits and type of colours in the header, channels
    "1": (1, 0, 1), "grey of 2 bits": (2, 0, 1), "grey of 4 bits": (4, 0, 1), "L": (8, 0, 1), "RGB": (8, 2, 3),
    "RGB of 16 bits": (16, 2, 3), "P of 1 bit": (1, 3, 1), "P": (8, 3, 1), "LA": (8, 4, 2), "RGBA": (8, 6, 4),
}  # fmt: skip


# PNG specification, third edition, 8.1: the pass that each pixel of a square of 8 x 8 comes in
ADAM7 = ("16462646", "77777777", "56565656", "77777777", "36463646", "77777777", "56565656", "77777777")


def piece(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(rows: bytes, bits: int, colours: int, *, interlaced: bool = False, cuts: int = 1) -> bytes:
    """A PNG file of rows that begin with their filter, in so many IDAT pieces."""
    header = struct.pack(">IIBBBBB", SIZE, SIZE, bits, colours, 0, 0, interlaced)
    palette = piece(b"PLTE", bytes(range(256)) * 3 if bits == 8 else bytes(range(6))) if colours == 3 else b""
    packed = zlib.compress(rows)
    step = -(-len(packed) // cuts)
    data = b"".join(piece(b"IDAT", packed[at : at + step]) for at in range(0, len(packed), step))
    return b"\x89PNG\r\n\x1a\n" + piece(b"IHDR", header) + palette + data + piece(b"IEND", b"")


def rows_of(bits: int, channels: int) -> bytes:
    length = -(-SIZE * bits * channels // 8)
    return b"".join(b"\0" + np.random.default_rng(row).bytes(length) for row in range(SIZE))


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("kind", KINDS)
def test_pixels_of_every_kind_are_read_and_refused_where_a_byte_is_missing(
    kind: str, mode: Literal["L", "RGB"]
) -> None:
    bits, colours, channels = KINDS[kind]
    rows = rows_of(bits, channels)
    whole = png(rows, bits, colours, cuts=3)
    with Image.open(io.BytesIO(whole)) as image:
        np.testing.assert_array_equal(decoded_png(whole, "x", SIZE, mode), np.asarray(image.convert(mode)))
    for end in (len(rows) - 1, len(rows) // SIZE, 0):  # Pillow gives zeros for what is missing
        with pytest.raises(ValueError, match=f"x must be a whole PNG file, .* must have {len(rows)} bytes, got {end}"):
            decoded_png(png(rows[:end], bits, colours), "x", SIZE, mode)


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_of_16_bits_is_refused_and_not_cut_off(bits: int) -> None:
    values: NDArray[np.uint16] = np.arange(SIZE * SIZE).reshape(SIZE, SIZE).astype(np.uint16)
    content = io.BytesIO()
    Image.fromarray(values.astype(np.uint8) if bits == 8 else values * 256).save(content, format="PNG")
    if bits == 8:
        np.testing.assert_array_equal(decoded_png(content.getvalue(), "x", SIZE, "L"), values)
        return
    with pytest.raises(ValueError, match=r"x must be a whole PNG file, .* must be of a mode of 1, L, .*, got I"):
        decoded_png(content.getvalue(), "x", SIZE, "L")


def test_interlaced_pixels_are_put_in_their_places_and_counted() -> None:
    values = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)
    number = np.array([list(ADAM7[y % 8]) for y in range(SIZE)])[:, np.arange(SIZE) % 8]
    parts = [row[of_row == step] for step in "1234567" for row, of_row in zip(values, number, strict=True)]
    rows = b"".join(b"\0" + part.tobytes() for part in parts if part.size)
    np.testing.assert_array_equal(decoded_png(png(rows, 8, 0, interlaced=True), "x", SIZE, "L"), values)
    with pytest.raises(ValueError, match=f"must have {len(rows)} bytes, got {len(rows) - 1}"):
        decoded_png(png(rows[:-1], 8, 0, interlaced=True), "x", SIZE, "L")
