"""Spikes in time steps, as events or as frames; frames of recordings are made once where they fit in memory."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elm_neuro.datasets.shd._recordings import SpikeRecordings
from elm_neuro.events import SpikeEvents

LARGEST = 128 * 2**20  # bytes of the frames that are remembered


@dataclass(frozen=True)
class Steps:
    """How recordings become time steps.

    Args:
        bin_us: width of a step in microseconds.
        duration_us: length of a sample in microseconds; later spikes are left out.
        pool: this many neighbouring channels become one.
        binary: whether several spikes of one channel and step count as one.
        scale: what a spike counts.

    Raises:
        ValueError: `scale` is no finite number above 0.
    """

    bin_us: int
    duration_us: int
    pool: int = 1
    binary: bool = False
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale must be a finite number above 0, got {self.scale}")

    def shape(self, num_samples: int, num_channels: int) -> tuple[int, int, int]:
        """(sample, step, pooled channel) of recordings over `num_channels`."""
        return num_samples, -(-self.duration_us // self.bin_us), -(-num_channels // self.pool)

    def events(self, recordings: SpikeRecordings, chosen: NDArray[np.int64]) -> SpikeEvents:
        """The samples `chosen`, (num_chosen,), as events."""
        return self.as_events(*self._cells(recordings, chosen))

    def frames(self, recordings: SpikeRecordings, chosen: NDArray[np.int64]) -> Tensor:
        """The same as frames."""
        return self.as_frames(*self._cells(recordings, chosen))

    def as_events(
        self, rows: NDArray[np.int64], channels: NDArray[np.int64], shape: tuple[int, int, int]
    ) -> SpikeEvents:
        """Spikes whose rows ``sample * num_steps + step`` rise, as events of `shape`."""
        num_rows = shape[0] * shape[1]
        if self.binary:  # one in each cell
            cells = np.sort(rows * shape[2] + channels)
            rows, channels = np.divmod(cells[np.diff(cells, prepend=-1) > 0], shape[2])
        indptr = np.zeros(num_rows + 1, dtype=np.int64)
        np.cumsum(np.bincount(rows, minlength=num_rows), out=indptr[1:])
        value = None if self.scale == 1.0 else torch.full(channels.shape, self.scale, device="cpu")
        return SpikeEvents(torch.from_numpy(indptr), torch.from_numpy(channels), value, shape)

    def as_frames(self, rows: NDArray[np.int64], channels: NDArray[np.int64], shape: tuple[int, int, int]) -> Tensor:
        """The same as frames of counts, or of zeros and ones, times `scale`."""
        cells = torch.from_numpy(rows * shape[2] + channels)
        frames = torch.zeros(shape[0] * shape[1] * shape[2], dtype=torch.float32, device="cpu")
        if self.binary:
            frames[cells] = 1.0
        else:
            frames.index_add_(0, cells, torch.ones(cells.shape[0], dtype=torch.float32, device="cpu"))
        return (frames if self.scale == 1.0 else frames.mul_(self.scale)).view(shape)

    def _cells(
        self, recordings: SpikeRecordings, chosen: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], tuple[int, int, int]]:
        shape = self.shape(chosen.size, recordings.num_channels)
        times, units, count = recordings.spikes_of(chosen, before=self.duration_us)
        rows = times // np.int32(self.bin_us) + np.repeat(np.arange(chosen.size) * shape[1], count)
        return rows, np.floor_divide(units, self.pool, dtype=np.int64), shape


class FrameTable:
    """Frames of recordings, each made when it is first asked for; of more than `LARGEST` bytes none is remembered.

    A copy for another process starts empty.
    """

    def __init__(self, recordings: SpikeRecordings, steps: Steps) -> None:
        self.recordings, self.steps = recordings, steps
        shape = steps.shape(len(recordings), recordings.num_channels)
        small = 4 * math.prod(shape) <= LARGEST
        self._frames = np.zeros(shape if small else (0, 0, 0), np.float32)  # takes up memory where it is written
        self._made = np.zeros(len(self._frames), np.bool_)

    def batch(self, chosen: NDArray[np.int64]) -> Tensor:
        """Frames of the samples `chosen`, (num_chosen,): a Tensor (num_chosen, num_steps, num_channels), float32, of
        its own.
        """
        if not self._made.size:
            return self.steps.frames(self.recordings, chosen)
        new = np.unique(chosen[~self._made[chosen]])
        if new.size:
            self._frames[new] = self.steps.frames(self.recordings, new).numpy()
            self._made[new] = True
        return torch.from_numpy(self._frames[chosen])

    def __reduce__(self) -> tuple[Any, ...]:
        return FrameTable, (self.recordings, self.steps)


def whole_microseconds(name: str, milliseconds: float) -> int:
    """`milliseconds` in microseconds.

    Raises:
        ValueError: they are not positive, not whole, or 2**31 or more.
    """
    microseconds = milliseconds * 1000.0
    if not (0.5 < microseconds < 2**31 and abs(microseconds - round(microseconds)) < 1e-6):
        raise ValueError(f"{name} must be positive and a whole number of microseconds, got {milliseconds} ms")
    return round(microseconds)
