"""Images of strangers: PNG files of an expected size, as grey values or colours."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from elm_neuro.files import open_regular

MAX_BYTES = 1 << 22
MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # what becomes grey or colours of 8 bits; 16 bits of grey would be cut off
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the type of colours in the header
# of each pass of Adam7, an image that is interlaced: first row and column, steps between rows and columns
ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


def read_png(path: Path, size: int, mode: Literal["L", "RGB"]) -> NDArray[np.uint8]:
    """Pixels of a PNG file, (size, size) or (size, size, 3).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, no PNG, or of another size.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there must be an image {path}, got no such file")
    with open_regular(path) as file:
        raw = file.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{path} must have at most {MAX_BYTES} bytes")
    return decoded_png(raw, path, size, mode)


def decoded_png(raw: bytes, name: object, size: int, mode: Literal["L", "RGB"]) -> NDArray[np.uint8]:
    """The same of the content of a file.

    Args:
        raw: the content.
        name: of the image, for messages.
        size: of its sides.
        mode: grey or colours.
    """
    try:
        with Image.open(io.BytesIO(raw), formats=("PNG",)) as image:
            if image.size != (size, size):
                raise ValueError(f"it must have {size} x {size} pixels, got {image.size[0]} x {image.size[1]}")
            if image.mode not in MODES:
                raise ValueError(f"it must be of a mode of {', '.join(MODES)}, got {image.mode}")
            _check_rows(raw, size)
            return np.asarray(image.convert(mode))
    except DAMAGED as error:
        raise ValueError(f"{name} must be a whole PNG file, got {len(raw)} bytes: {error}") from error


def _check_rows(raw: bytes, size: int) -> None:
    """Refuse pixels that end early, in place of which Pillow gives zeros."""
    kind, depth, colours, interlaced = struct.unpack_from(">4s8xBB2xB", raw, 12)
    if kind != b"IHDR" or colours not in CHANNELS:
        raise ValueError(f"it must begin with its header, IHDR, got {kind!r} and colours of type {colours}")
    expected = 0
    for row, column, down, right in ADAM7 if interlaced else ((0, 0, 1, 1),):
        rows, columns = len(range(row, size, down)), len(range(column, size, right))
        expected += rows * (1 + -(-columns * depth * CHANNELS[colours] // 8)) if columns else 0
    packed, at = [], 8
    while at + 8 <= len(raw):
        length = int.from_bytes(raw[at : at + 4], "big")
        if raw[at + 4 : at + 8] == b"IDAT":
            packed.append(raw[at + 8 : at + 8 + length])
        at += length + 12
    num = len(zlib.decompressobj().decompress(b"".join(packed), expected))
    if num < expected:
        raise ValueError(f"it is damaged: its pixels must have {expected} bytes, got {num}")
