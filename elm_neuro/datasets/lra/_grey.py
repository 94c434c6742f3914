"""Grey values of colours as the published loaders take them, and the few levels that the paper bins them to."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from elm_neuro.datasets.lra._vocabulary import Convention, check_convention

Grey = NDArray[np.uint8]


def to_grey(colours: NDArray[np.uint8], convention: Convention) -> Grey:
    """Grey values, (...), of colours, (..., 3).

    "s4" and "mega" take Pillow's ``convert("L")``, 16-bit weights 19595, 38470, 7471; "google" TensorFlow's
    ``rgb_to_grayscale``, weights 0.2989, 0.5870, 0.1140 in float32, truncated. They differ by one in a quarter of all
    colours, on greys never.

    >>> colour = np.array([200, 31, 47], dtype=np.uint8)
    >>> int(to_grey(colour, "s4")), int(to_grey(colour, "google"))
    (83, 83)
    """
    check_convention(convention)
    if colours.dtype != np.uint8 or colours.shape[-1:] != (3,):
        raise ValueError(f"colours must be uint8 of shape (..., 3), got {colours.dtype} of shape {colours.shape}")
    if convention == "google":
        weights = np.array([0.2989, 0.5870, 0.1140], dtype=np.float32)
        red, green, blue = np.moveaxis(colours.astype(np.float32) * np.float32(1 / 255), -1, 0)
        shade = red * weights[0] + green * weights[1] + blue * weights[2]
        return np.asarray((shade * np.float32(255.5)).astype(np.uint8))
    whole = colours.astype(np.uint32) @ np.array([19595, 38470, 7471], dtype=np.uint32)
    return np.asarray(((whole + 32768) >> 16).astype(np.uint8))


def to_levels(grey: NDArray[Any], num_levels: int) -> Grey:
    """Grey values from 0 to 255 binned to `num_levels` of equal width: ``v // (256 / num_levels)``.

    The paper has 16 levels for Image and Pathfinder and 8 for Pathfinder-X and does not say how they are binned; this
    is the plain reading. With 256 levels nothing changes.

    Raises:
        ValueError: `num_levels` does not divide 256.
    """
    if num_levels < 1 or 256 % num_levels:
        raise ValueError(f"num_levels must divide 256, got {num_levels}")
    return np.asarray(grey // (256 // num_levels)).astype(np.uint8)
