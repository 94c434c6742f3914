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
            return np.asarray(image.convert(mode))
    except DAMAGED as error:
        raise ValueError(f"{name} must be a whole PNG file, got {len(raw)} bytes: {error}") from error
