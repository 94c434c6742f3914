"""Recordings of N-MNIST in their published form: a folder a part, a folder a digit in it, five bytes an event.

Source of the form and of the data: Orchard, Jayawant, Cohen, Thakor: Converting Static Image Datasets to Spiking
Neuromorphic Datasets Using Saccades, Frontiers in Neuroscience 9:437, 2015, doi 10.3389/fnins.2015.00437.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from elm_neuro.datasets._items import integers
from elm_neuro.datasets.shd._recordings import SpikeRecordings
from elm_neuro.files import read_file, write_whole

SIDE = 34  # pixels
NUM_PIXELS = SIDE * SIDE
NUM_DIGITS = 10
EVENT_BYTES = 5
END_OF_TIME = 1 << 23  # microseconds: 23 bits hold the time
MAX_BYTES = 1 << 23  # of a file: the published ones have some 20 kB
PARTS = {"train": "Train", "test": "Test"}
ADDRESS = "https://www.garrickorchard.com/datasets/n-mnist"
PAPER = (
    "Orchard, Jayawant, Cohen, Thakor: Converting Static Image Datasets to Spiking Neuromorphic Datasets Using "
    "Saccades, Frontiers in Neuroscience 9:437, 2015, doi 10.3389/fnins.2015.00437"
)

Part = Literal["train", "test"]
Polarity = Literal["fold", "keep"]
Ints = NDArray[np.int64]


class PixelEvents(NamedTuple):
    """Events of one recording, each (num_events,), int64."""

    times: Ints  # microseconds
    x: Ints  # column
    y: Ints  # row
    polarity: Ints  # 1 where it became brighter, else 0

    def channels(self, polarity: Polarity) -> Ints:
        """Pixel ``34 y + x`` of each event, with "keep" 1156 more where it became brighter."""
        pixels = self.y * SIDE + self.x
        return pixels + NUM_PIXELS * self.polarity if polarity == "keep" else pixels


def read_nmnist_file(path: str | os.PathLike[str]) -> PixelEvents:
    """Events of one file: column, row, then polarity in the highest of 24 bits and microseconds in the others.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, too large, cut short, or has an event outside of the 34 x 34 pixels.
    """
    content = read_file(Path(path), MAX_BYTES)
    if len(content) % EVENT_BYTES:
        raise ValueError(f"{path} must hold events of {EVENT_BYTES} bytes, got {len(content)} bytes")
    raw = np.frombuffer(content, np.uint8).reshape(-1, EVENT_BYTES).astype(np.int64)
    x, y, high, middle, low = raw.T
    outside = (x >= SIDE) | (y >= SIDE)
    if outside.any():
        first = int(outside.argmax())
        raise ValueError(
            f"{path} must have its events on {SIDE} x {SIDE} pixels, got event {first} at column {x[first]}, row "
            f"{y[first]}"
        )
    return PixelEvents(((high & 127) << 16) | (middle << 8) | low, x, y, high >> 7)


def write_nmnist_file(
    path: str | os.PathLike[str], times: ArrayLike, x: ArrayLike, y: ArrayLike, polarity: ArrayLike
) -> None:
    """Write one file, whole or not at all; arguments as :class:`PixelEvents` has them.

    Raises:
        ValueError: one is out of range, or they are not equally many.
        OSError: it cannot be written.
    """
    t = integers("times", times, 0, END_OF_TIME, np.int64)
    columns, rows = integers("x", x, 0, SIDE, np.int64), integers("y", y, 0, SIDE, np.int64)
    brighter = integers("polarity", polarity, 0, 2, np.int64)
    if not t.size == columns.size == rows.size == brighter.size:
        raise ValueError(
            f"times, x, y and polarity must be equally many, got {t.size}, {columns.size}, {rows.size}, {brighter.size}"
        )
    raw = np.stack((columns, rows, brighter << 7 | t >> 16, t >> 8 & 255, t & 255), axis=1).astype(np.uint8)
    write_whole({Path(path): raw.tobytes()})


def read_nmnist(
    folder: str | os.PathLike[str], part: Part = "train", *, polarity: Polarity = "fold"
) -> SpikeRecordings:
    """All recordings of a part, digit by digit, in the order of their files' names.

    Args:
        folder: which has the folders Train and Test, or NMNIST with them inside, as tonic unpacks it.
        part: "train" (60,000 published recordings) or "test" (10,000).
        polarity: "fold" takes a pixel that becomes brighter and one that becomes darker for one channel (1,156 in all,
            as Taylor, King, Harper, NeurIPS 2023, do), "keep" for two (2,312; the second half became brighter).

    Raises:
        FileNotFoundError: there are no such recordings; the message says where they are to be had.
        ValueError: an argument or a file is not as it must be.
    """
    if part not in PARTS:
        raise ValueError(f'part must be "train" or "test", got {part!r}')
    if polarity not in ("fold", "keep"):
        raise ValueError(f'polarity must be "fold" or "keep", got {polarity!r}')
    place = nmnist_folder(folder, part)
    times, channels, sizes, labels = [], [], [0], []
    for digit in range(NUM_DIGITS):
        files = recordings_in(place / str(digit))
        if not files:
            raise FileNotFoundError(f"{place / str(digit)} must have recordings, *.bin, got none: {_where(folder)}")
        for file in files:
            events = read_nmnist_file(file)
            times.append(events.times.astype(np.int32))
            channels.append(events.channels(polarity).astype(np.uint16))
            sizes.append(events.times.size)
            labels.append(digit)
    num_channels = NUM_PIXELS if polarity == "fold" else 2 * NUM_PIXELS
    indptr = np.cumsum(sizes)
    return SpikeRecordings(
        np.concatenate(times), np.concatenate(channels), indptr, np.array(labels), None, num_channels
    )


def recordings_in(folder: Path) -> list[Path]:
    """Files of a folder in the order of their names, less those that are not whole: their names begin with a dot."""
    return sorted(file for file in folder.iterdir() if file.suffix == ".bin" and not file.name.startswith("."))


def nmnist_folder(folder: str | os.PathLike[str], part: Part) -> Path:
    """Where the ten folders of a part lie.

    Raises:
        FileNotFoundError: they are not there.
    """
    for place in (Path(folder), Path(folder, "NMNIST")):
        inside = place / PARTS[part]
        if inside.is_dir():
            missing = [str(digit) for digit in range(NUM_DIGITS) if not (inside / str(digit)).is_dir()]
            if missing:
                raise FileNotFoundError(
                    f"{inside} must have a folder for each digit, got none for {', '.join(missing)}: {_where(folder)}"
                )
            return inside
    raise FileNotFoundError(f"{os.fspath(folder)} must have the folder {PARTS[part]} of N-MNIST: {_where(folder)}")


def _where(folder: str | os.PathLike[str]) -> str:
    return (
        f"download Train.zip and Test.zip from {ADDRESS} and unpack them into {os.fspath(folder)}, or make a stand-in "
        f"with elm_neuro.datasets.make_nmnist ({PAPER})"
    )
