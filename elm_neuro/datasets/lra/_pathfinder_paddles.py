"""Paddles of Pathfinder: short antialiased strokes with a margin that no other stroke enters.

Measures and rounding are those of drewlinsley/pathfinder at ab9c130 (``snakes.py``), whose image functions of old
versions of SciPy and OpenCV are replaced by what they did: a resize that first stretches to bytes, a dilation that
looks at no pixel outside. Coordinates are (row, column), orientations angles in radian from the column axis towards
higher rows.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.float64]
Point = tuple[int, int]
ANTIALIAS = 2  # strokes are drawn at this many times the resolution


class Paddle:
    """Shape of all paddles of an image; what depends on the direction alone is worked out once for each.

    Args:
        length: from tail to head, in pixels.
        thickness: in pixels.
        margin: width of the seam around it in pixels.
        continuity: how straight a curve goes on, at least 1.
    """

    def __init__(self, length: int, thickness: float, margin: int, continuity: float) -> None:
        self.length, self.thickness, self.margin, self.continuity = length, thickness, margin, continuity
        self.radius = length + math.ceil(thickness) + margin  # of the square that a stroke and its seam fit into
        self.reach = length + margin  # from a pivot to the next head
        # pixels on a circle around a pivot where the next head may be, a pixel apart, and the direction of each
        angle = np.arange(0, 360, 360.0 / (2 * self.reach * np.pi)) * np.pi / 180
        around = np.stack((self.reach * np.sin(angle), self.reach * np.cos(angle)), axis=1)
        self.heads: NDArray[np.int64] = np.unique(np.floor(around).astype(np.int64), axis=0)  # (head, 2)
        self.directions: Pixels = np.arctan2(self.heads[:, 0], self.heads[:, 1])
        self.seam = np.argwhere(disc(margin)) - margin  # (pixel, 2) of a disc of the margin's radius
        self._strokes: dict[float, tuple[Pixels, Pixels]] = {}
        self._weights: dict[float, Pixels] = {}
        self._shadows: dict[float, NDArray[np.int64] | None] = {}

    def stroke(self, orientation: float) -> tuple[Pixels, Pixels]:
        """A stroke from the centre in the direction `orientation`, and itself with its seam, (2 * radius + 1, same),
        in [0, 1].
        """
        if orientation not in self._strokes:
            self._strokes[orientation] = self._drawn(orientation)
        return self._strokes[orientation]

    def _drawn(self, orientation: float) -> tuple[Pixels, Pixels]:
        centre = self.radius * ANTIALIAS
        side = 2 * centre + 1
        row, column = ahead((centre, centre), orientation, self.length * ANTIALIAS)
        fine = Image.new("L", (side, side))
        width = round(self.thickness * ANTIALIAS)
        ImageDraw.Draw(fine).line([(centre, centre), (column, row)], fill=255, width=width)
        blown: NDArray[np.uint8] = np.asarray(fine)
        wide = dilated(blown, np.argwhere(disc(self.margin * ANTIALIAS)) - self.margin * ANTIALIAS)
        shape = (2 * self.radius + 1, 2 * self.radius + 1)
        return shrunk(blown, shape) / 255.0, shrunk(wide, shape) / 255.0

    def straightness(self, orientation: float) -> Pixels:
        """Squared cosine of the bend from `orientation` to each of `directions`, (head,)."""
        if orientation not in self._weights:
            bend = np.abs(self.directions - orientation)
            bend = np.minimum(np.minimum(bend, 2 * np.pi - bend) * self.continuity, 0.5 * np.pi)
            self._weights[orientation] = np.maximum(np.cos(bend), 0.0) ** 2
        return self._weights[orientation]

    def shadow(self, orientation: float) -> NDArray[np.int64] | None:
        """Pixels (row, column), from its tail, that the seam of a paddle fills; None where they leave a corner of the
        image without any: there OpenCV's dilation gives minus infinity, on which the published code gives up.
        """
        if orientation not in self._shadows:
            kernel = np.zeros((2 * self.reach + 1, 2 * self.reach + 1))
            lay(kernel, self.stroke(orientation)[1], (self.reach + 1, self.reach + 1))  # off by one, as published
            pixels = np.argwhere(kernel >= 1.0) - self.reach
            signs = [(row, column) for row in (1, -1) for column in (1, -1)]
            whole = all((pixels * sign >= 0).all(1).any() for sign in signs)
            self._shadows[orientation] = pixels if whole else None
        return self._shadows[orientation]


def disc(radius: int) -> NDArray[np.bool_]:
    """Pixels within `radius` of the centre, (2 * radius + 1, same).

    >>> disc(1).astype(int)
    array([[0, 1, 0],
           [1, 1, 1],
           [0, 1, 0]])
    """
    row, column = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(row**2 + column**2 <= radius**2)


def ahead(point: Point, orientation: float, distance: float) -> Point:
    """The pixel at `distance` from `point`, rounded up in both coordinates."""
    row, column = point
    return (
        math.ceil(row + distance * math.sin(orientation)),
        math.ceil(column + distance * math.cos(orientation)),
    )


def reversed_(orientation: float) -> float:
    """The opposite direction, in (-pi, pi)."""
    return orientation + math.pi if orientation < 0 else orientation - math.pi


def dilated(image: NDArray[Any], offsets: NDArray[np.int64]) -> NDArray[Any]:
    """Highest value at any of `offsets`, (pixel, 2), from each pixel; pixels outside of the image do not count."""
    reach = int(np.abs(offsets).max())
    height, width = image.shape
    padded = np.zeros((height + 2 * reach, width + 2 * reach), dtype=image.dtype)
    padded[reach : reach + height, reach : reach + width] = image
    result = np.zeros_like(image)
    for row, column in (offsets + reach).tolist():
        np.maximum(result, padded[row : row + height, column : column + width], out=result)
    return result


def stretched(image: NDArray[Any]) -> NDArray[np.uint8]:
    """`image` with its lowest value at 0 and its highest at 255; one of equal values is black.

    >>> stretched(np.array([[0.0, 1.0, 2.0]]))
    array([[  0, 128, 255]], dtype=uint8)
    """
    low, high = float(image.min()), float(image.max())
    return ((image - low) * (255.0 / ((high - low) or 1.0)) + 0.5).astype(np.uint8)


def shrunk(image: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """`image`, stretched to bytes, at another size by Lanczos' filter."""
    resized = Image.fromarray(stretched(image)).resize((shape[1], shape[0]), Image.Resampling.LANCZOS)
    return np.asarray(resized)


def lay(image: Pixels, patch: Pixels, point: Point, contrast: float = 1.0) -> None:
    """Have `image` at least as bright as `patch` around `point`, in place."""
    window, part = _overlap(image.shape, patch.shape[0], point)
    shown = image[window]
    np.maximum(shown, patch[part] * contrast if contrast != 1.0 else patch[part], out=shown)


def meets(mask: Pixels, patch: Pixels, point: Point, limit: float) -> bool:
    """Whether `mask` and `patch` around `point` add up to `limit` somewhere."""
    window, part = _overlap(mask.shape, patch.shape[0], point)
    return bool((mask[window] + patch[part]).max(initial=0.0) >= limit)


def _overlap(shape: tuple[int, ...], side: int, point: Point) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Slices of an image, and of a square patch of an odd side that is laid around `point`."""
    top, left = point[0] - side // 2, point[1] - side // 2
    first_row, first_column = max(top, 0), max(left, 0)
    last_row = max(min(top + side, shape[0]), first_row)
    last_column = max(min(left + side, shape[1]), first_column)
    return (
        (slice(first_row, last_row), slice(first_column, last_column)),
        (slice(first_row - top, last_row - top), slice(first_column - left, last_column - left)),
    )
