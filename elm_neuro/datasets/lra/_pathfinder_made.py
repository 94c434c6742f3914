"""Images of Pathfinder by the published procedure: two long dashed curves, short ones that distract, two discs.

Source: Linsley et al. 2018, arXiv:1805.08315, as in drewlinsley/pathfinder at ab9c130 (``snakes2.py``) with the
settings of google-research/long-range-arena at cd31e5c, ``lra_benchmarks/data/pathfinder.py``. Both discs are at tips
of one curve (label 1) or of the two (label 0). The random numbers are ours, from (seed, size, number of the image)
alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from elm_neuro.datasets._counter import checked_seed
from elm_neuro.datasets.lra._pathfinder_paddles import (
    ANTIALIAS,
    Paddle,
    Pixels,
    Point,
    ahead,
    dilated,
    lay,
    meets,
    reversed_,
    shrunk,
    stretched,
)

CROSSING = 1.8  # seams that add up to this cross
OCCUPIED = 0.3  # a seam above this takes its pixel
CROWDED = 0.01  # share of free pixels below which no curve is begun
NO_WAY = 1e-4  # total share of the pixels where a curve may go on, below which it does not
NUM_RETRIALS = 2  # of a paddle, after the first trial
NUM_SNAKE_RETRIALS = 4  # of a curve that distracts


@dataclass(frozen=True, kw_only=True)
class PathfinderSettings:
    """What images look like; :data:`SIZES` has those of the published ones.

    Args:
        size: pixels of a side.
        paddle_length: of each dash, in pixels.
        paddle_thickness: in pixels; a whole number of half pixels.
        margins: seam of the paddles in pixels, one drawn for each image.
        seed_distance: between the origins of the two curves, in pixels.
        marker_radius: of the discs, in pixels.
        continuity: how straight curves go on, at least 1.
        num_distractors: curves that distract, as far as there is room.
        distractor_length: paddles of each.
        contour_length: paddles of the two curves.
        contrast: of paddles that distract; markers have 1.
        paddle_contrast: by which that of the two curves is multiplied.
        padding: pixels at the edges that no paddle enters.
    """

    size: int
    paddle_length: int
    paddle_thickness: float
    margins: tuple[int, ...]
    seed_distance: int
    marker_radius: float
    continuity: float
    num_distractors: int
    contrast: float
    paddle_contrast: float = 1.0
    distractor_length: int = 4  # 14 // 3
    contour_length: int = 14
    padding: int = 1


_SMALL = PathfinderSettings(
    size=32, paddle_length=2, paddle_thickness=0.5, margins=(1,), seed_distance=7, marker_radius=1.5, continuity=1.0,
    num_distractors=20 // 4, contrast=2.0, paddle_contrast=0.75,
)  # fmt: skip
_LARGE = PathfinderSettings(
    size=128, paddle_length=5, paddle_thickness=1.5, margins=(2, 3), seed_distance=20, marker_radius=3.0,
    continuity=1.8, num_distractors=35 // 4, contrast=0.9,
)  # fmt: skip
# Pathfinder-64 has no place in the published table; ours has the paddles of 128 at half of its lengths
_MIDDLE = replace(
    _LARGE, size=64, paddle_length=3, paddle_thickness=1.0, margins=(1,), seed_distance=12, marker_radius=2.0,
    num_distractors=30 // 4,
)  # fmt: skip
SIZES = {32: _SMALL, 64: _MIDDLE, 128: _LARGE}


@dataclass
class Contour:
    """A curve while it grows, and afterwards: its paddles from tail to head, and the tip that may bear a disc."""

    pivot: Point
    orientation: float
    last: tuple[Pixels, Point]  # seam of the newest paddle and its centre, not yet in the mask
    tip: Point
    paddles: list[tuple[Point, float]] = field(default_factory=list)  # head, and direction towards the tail


@dataclass(frozen=True, eq=False)
class Drawing:
    """An image of Pathfinder and how it came about.

    Args:
        image: grey, (size, size), uint8, from 0 to 255.
        label: 1 where both discs are on one curve.
        margin: seam of its paddles.
        layers: the two curves without discs, (2, size, size), before they are stretched to bytes.
        origins: the tip (row, column) that each curve began at, (2, 2).
        terminals: the one that it ended at, (2, 2).
        markers: centres of the discs, (2, 2).
        contours: the paddles of the two curves.
    """

    image: NDArray[np.uint8]
    label: int
    margin: int
    layers: Pixels
    origins: NDArray[np.int64]
    terminals: NDArray[np.int64]
    markers: NDArray[np.int64]
    contours: tuple[Contour, Contour]


def pathfinder_settings(
    size: int = 32, *, contour_length: int = 14, num_distractors: int | None = None
) -> PathfinderSettings:
    """The published settings of a size, or easier ones.

    Args:
        size: 32, 64 or 128.
        contour_length: paddles of the two curves, at least 1; short ones are easier.
        num_distractors: curves that distract; None is the published number.

    Raises:
        ValueError: an argument is out of range.
    """
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(map(str, SIZES))}, got {size}")
    if not 1 <= contour_length <= 14:
        raise ValueError(f"contour_length must be in [1, 14], got {contour_length}")
    if num_distractors is not None and num_distractors < 0:
        raise ValueError(f"num_distractors must not be negative, got {num_distractors}")
    published = SIZES[size]
    return replace(
        published,
        contour_length=contour_length,
        num_distractors=published.num_distractors if num_distractors is None else num_distractors,
    )


def draw_pathfinder(
    number: int, size: int = 32, *, seed: int = 0, contour_length: int = 14, num_distractors: int | None = None
) -> Drawing:
    """Image `number` of the endless list of `seed`.

    Args:
        number: not negative.
        size: 32, 64 or 128.
        seed: in [0, 2**64).
        contour_length: as in :func:`pathfinder_settings`, like what follows; the published set has 14.
        num_distractors: curves that distract.

    Raises:
        ValueError: an argument is out of range.

    >>> drawing = draw_pathfinder(3)
    >>> drawing.image.shape, drawing.label, drawing.image.max().item()
    ((32, 32), 1, 255)
    """
    settings = pathfinder_settings(size, contour_length=contour_length, num_distractors=num_distractors)
    if number < 0:
        raise ValueError(f"number must not be negative, got {number}")
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence((checked_seed(seed), size, number))))
    return _Pen(settings, random).drawing()


class Canvas:
    """Where no paddle may go: the seams of those that are there, with a frame of zeros to look into.

    Args:
        size: pixels of a side.
        padding: pixels at the edges that are taken.
        frame: pixels around.
    """

    def __init__(self, size: int, padding: int, frame: int) -> None:
        self.size, self.frame = size, frame
        self.framed = np.zeros((size + 2 * frame, size + 2 * frame))
        self.mask = self.framed[frame : frame + size, frame : frame + size]
        self.mask[:] = 1.0
        self.mask[padding : size - padding, padding : size - padding] = 0.0
        self.inside = np.zeros(self.framed.shape, dtype=bool)
        self.inside[frame : frame + size, frame : frame + size] = True

    def at(self, point: Point) -> int | None:
        """Place of a pixel in the flattened array; None where it lies so far outside that nothing is to be seen."""
        row, column = point[0] + self.frame, point[1] + self.frame
        near, far = self.frame // 2, len(self.framed) - self.frame // 2
        return row * len(self.framed) + column if near <= row < far and near <= column < far else None


@lru_cache(maxsize=32)
def _paddle(length: int, thickness: float, margin: int, continuity: float) -> Paddle:
    return Paddle(length, thickness, margin, continuity)


class _Pen:
    """What is drawn so far of one image."""

    def __init__(self, settings: PathfinderSettings, random: np.random.Generator) -> None:
        self.settings, self.random = settings, random
        self.label = int(random.integers(2))
        self.margin = margin = int(settings.margins[int(random.integers(len(settings.margins)))])
        self.paddle = _paddle(settings.paddle_length, settings.paddle_thickness, margin, settings.continuity)
        self.frame = 2 * (self.paddle.reach + margin + 1)
        side = settings.size + 2 * self.frame
        flat = self.paddle.heads @ np.array([side, 1])  # from a pivot, in a flattened frame
        self.head_places, self.seam_places = flat, flat[:, None] + self.paddle.seam @ np.array([side, 1])

    def drawing(self) -> Drawing:
        settings = self.settings
        while (two := self._two_contours()) is None:
            pass
        layers, canvas, contours = two
        image = np.maximum(layers[0], layers[1])
        for _ in range(settings.num_distractors):
            for _ in range(1 + NUM_SNAKE_RETRIALS):
                if (after := self._with_distractor(image, canvas)) is not None:
                    image = after
                    break
        first = int(self.random.integers(2))
        last = first if self.label else 1 - first
        markers = [contours[first].tip, contours[last].paddles[-1][0]]
        for marker in markers:
            image = np.maximum(image, self._disc(marker))
        return Drawing(
            stretched(image),
            self.label,
            self.margin,
            np.stack(layers),
            np.array([contour.tip for contour in contours]),
            np.array([contour.paddles[-1][0] for contour in contours]),
            np.array(markers),
            contours,
        )

    def _two_contours(self) -> tuple[list[Pixels], Canvas, tuple[Contour, Contour]] | None:
        """Two curves, grown in turns, that keep their seams clear of each other; None where one finds no way."""
        settings = self.settings
        contrast = settings.contrast * settings.paddle_contrast
        first = self._seed(None, edge=2 * settings.seed_distance)
        second = None if first is None else self._seed_beside(first.tip)
        if first is None or second is None:
            return None
        canvas = Canvas(settings.size, settings.padding, self.frame)
        layers = [np.zeros((settings.size, settings.size)) for _ in range(2)]
        contours = (first, second)
        for layer, contour in zip(layers, contours, strict=True):
            self._stroke(layer, contour.tip, contour.orientation, contrast)
        for _ in range(settings.contour_length - 1):
            for layer, contour in zip(layers, contours, strict=True):
                if not self._extend(contour, layer, canvas, contrast):
                    return None
        lay(canvas.mask, *second.last)  # the first one's last seam stays out, as published
        return layers, canvas, contours

    def _with_distractor(self, image: Pixels, canvas: Canvas) -> Pixels | None:
        """The image with one more short curve, whose seam is on the canvas then; None where it finds no place."""
        if (contour := self._seed(canvas, edge=1)) is None:
            return None
        image, before = image.copy(), canvas.mask.copy()
        self._stroke(image, contour.tip, contour.orientation, self.settings.contrast)
        for _ in range(self.settings.distractor_length - 1):
            if not self._extend(contour, image, canvas, self.settings.contrast):
                canvas.mask[:] = before
                return None
        lay(canvas.mask, *contour.last)
        return image

    def _seed(self, canvas: Canvas | None, *, edge: int) -> Contour | None:
        """A first paddle somewhere where it fits, `edge` pixels off the edges; None where it fits nowhere, or the
        canvas is crowded.
        """
        size = self.settings.size
        for _ in range(1 + NUM_RETRIALS):
            orientation = int(self.random.integers(-180, 180)) * math.pi / 180
            if (shadow := self.paddle.shadow(orientation)) is None:
                return None
            taken = np.zeros((size, size), dtype=bool) if canvas is None else canvas.mask > OCCUPIED
            if canvas is not None and (~taken).mean() < CROWDED:
                return None
            for side in (taken, taken.T):
                side[:edge] = side[size - edge :] = True
            places = np.flatnonzero(~dilated(taken, shadow))
            if not places.size:
                return None
            tail = divmod(int(places[int(self.random.integers(places.size))]), size)
            if (contour := self._first_paddle(tail, orientation)) is not None:
                return contour
        return None

    def _seed_beside(self, origin: Point) -> Contour | None:
        """A first paddle whose tail is `seed_distance` from `origin`."""
        distance = self.settings.seed_distance
        for _ in range(1 + NUM_RETRIALS):
            orientation = int(self.random.integers(-180, 180)) * math.pi / 180
            around = int(self.random.integers(360)) * math.pi / 180
            tail = (round(origin[0] + distance * math.sin(around)), round(origin[1] + distance * math.cos(around)))
            if (contour := self._first_paddle(tail, orientation)) is not None:
                return contour
        return None

    def _first_paddle(self, tail: Point, orientation: float) -> Contour | None:
        """A curve of one paddle; None where it would leave the image."""
        head = ahead(tail, orientation, self.paddle.length)
        pivot = ahead(head, reversed_(orientation), self.paddle.reach)
        if not all(0 <= place < self.settings.size for place in (*head, *pivot)):
            return None
        seam = self.paddle.stroke(orientation)[1]
        return Contour(pivot, orientation, (seam, tail), tail, [(head, reversed_(orientation))])

    def _extend(self, contour: Contour, image: Pixels, canvas: Canvas, contrast: float) -> bool:
        """Add a paddle to a curve, and the seam of the one before to the canvas; False where it finds no way on.

        A head lies on one of the pixels around the pivot, with a probability that is the free share of the pixel times
        the squared cosine of the bend.
        """
        pivot = ahead(contour.pivot, contour.orientation, self.paddle.length + 2 * self.margin)
        if (place := canvas.at(pivot)) is None:
            return False
        share = 1.0 - canvas.framed.ravel()[place + self.seam_places].max(1)
        share *= self.paddle.straightness(contour.orientation)
        share *= canvas.inside.ravel()[place + self.head_places]
        likely = share.cumsum()
        if likely[-1] < NO_WAY:
            return False
        for _ in range(1 + NUM_RETRIALS):
            chosen = int(likely.searchsorted(self.random.random() * likely[-1], side="right"))
            row, column = self.paddle.heads[chosen].tolist()
            head, backwards = (pivot[0] + row, pivot[1] + column), reversed_(float(self.paddle.directions[chosen]))
            stroke, seam = self.paddle.stroke(backwards)
            if not meets(canvas.mask, seam, head, CROSSING):
                lay(image, stroke, head, contrast)
                lay(canvas.mask, *contour.last)
                contour.pivot, contour.orientation = pivot, float(self.paddle.directions[chosen])
                contour.last = (seam, head)
                contour.paddles.append((head, backwards))
                return True
        return False

    def _stroke(self, image: Pixels, tail: Point, orientation: float, contrast: float) -> None:
        lay(image, self.paddle.stroke(orientation)[0], tail, contrast)

    def _disc(self, centre: Point) -> Pixels:
        """A disc in an image of its own, in [0, 1]."""
        size = self.settings.size * ANTIALIAS
        row, column = (np.arange(size) - place * ANTIALIAS for place in centre)
        disc = row[:, None] ** 2 + column[None, :] ** 2 <= (self.settings.marker_radius * ANTIALIAS) ** 2
        return shrunk(disc.astype(np.uint8), (self.settings.size, self.settings.size)) / 255.0
