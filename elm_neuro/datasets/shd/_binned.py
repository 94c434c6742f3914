"""Recordings binned for training: samples, batches, collating."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import Dataset

from elm_neuro.datasets._items import Items, collate, index_of, indices_of
from elm_neuro.datasets.shd._files import read_shd
from elm_neuro.datasets.shd._frames import FrameTable, Steps, whole_microseconds
from elm_neuro.datasets.shd._recordings import SpikeRecordings
from elm_neuro.events import SpikeEvents

Item: TypeAlias = tuple[SpikeEvents | Tensor, int, int]
Batch: TypeAlias = tuple[SpikeEvents | Tensor, Tensor, Tensor]


class SHDDataset(Dataset[Item]):
    """Binned samples for training: item ``i`` is (input, label, speaker), speaker -1 where unknown.

    A spike at time t falls into step ``floor(t / bin_ms)``, computed in whole microseconds: bins are half-open and
    start at 0. Spikes at or past `duration_ms` are left out. There are ``ceil(duration_ms / bin_ms)`` steps.

    Use ``DataLoader(dataset, batch_size=32, collate_fn=SHDDataset.collate)``: PyTorch then fetches whole batches at
    once.

    Args:
        recordings: the samples, or the path of an SHD-format file.
        bin_ms: width of a step in ms, a whole number of microseconds.
        duration_ms: length of every sample in ms, a whole number of microseconds.
        output: "events" gives `SpikeEvents` of batch 1, "frames" a Tensor (num_steps, num_channels), float32.
        binary: whether several spikes of one channel and step count as one.
        pool: this many neighbouring channels become one, ``channel // pool``; there are ``ceil(700 / pool)``.
        scale: what a spike counts; ``1 / pool`` makes a channel the mean of those that became it.
        indices: samples to use, in that order; None uses all.

    Raises:
        ValueError: an argument is out of range.

    >>> recordings = SpikeRecordings(np.array([0, 9999, 10000]), np.array([3, 3, 699]), np.array([0, 3]),
    ...     np.array([7]), np.array([2]))
    >>> dataset = SHDDataset(recordings, bin_ms=10.0, duration_ms=1000.0)
    >>> dataset[0]
    (SpikeEvents(batch=1, num_steps=100, num_channels=700, num_events=3), 7, 2)
    >>> frames, _, _ = SHDDataset(recordings, duration_ms=20.0, output="frames", pool=350)[0]
    >>> frames
    tensor([[2., 0.],
            [0., 1.]])
    """

    def __init__(
        self,
        recordings: SpikeRecordings | str | os.PathLike[str],
        *,
        bin_ms: float = 10.0,
        duration_ms: float = 1000.0,
        output: Literal["events", "frames"] = "events",
        binary: bool = False,
        pool: int = 1,
        scale: float = 1.0,
        indices: ArrayLike | None = None,
    ) -> None:
        self.recordings = recordings if isinstance(recordings, SpikeRecordings) else read_shd(recordings)
        bin_us, duration_us = whole_microseconds("bin_ms", bin_ms), whole_microseconds("duration_ms", duration_ms)
        if output not in ("events", "frames"):
            raise ValueError(f'output must be "events" or "frames", got {output!r}')
        if not 1 <= pool <= self.recordings.num_channels:
            raise ValueError(f"pool must be in [1, {self.recordings.num_channels}], got {pool}")
        self.output, self.binary, self.pool = output, binary, pool
        self.indices = indices_of(np.arange(len(self.recordings)) if indices is None else indices, len(self.recordings))
        self._steps = Steps(bin_us, duration_us, pool, binary, scale)
        self._table = FrameTable(self.recordings, self._steps) if output == "frames" else None
        _, self.num_steps, self.num_channels = self._steps.shape(0, self.recordings.num_channels)

    @property
    def labels(self) -> Tensor:
        """Class of each item, (num_items,), int64."""
        return torch.from_numpy(self.recordings.labels[self.indices])

    @property
    def speakers(self) -> Tensor:
        """Speaker of each item, (num_items,), int64, -1 where unknown."""
        known = self.recordings.speakers
        return torch.full((len(self),), -1, device="cpu") if known is None else torch.from_numpy(known[self.indices])

    def __len__(self) -> int:
        return self.indices.size

    def __getitem__(self, index: int) -> Item:
        inputs, labels, speakers = self.batch([index_of(index, len(self))])
        return inputs if isinstance(inputs, SpikeEvents) else inputs[0], int(labels[0]), int(speakers[0])

    def __getitems__(self, indices: Sequence[int]) -> Sequence[Item]:
        """The items `indices`, not yet binned: `collate` bins them in one go, any other reader gets them one by one."""
        return Items(self, indices)

    def __iter__(self) -> Iterator[Item]:
        return (self[index] for index in range(len(self)))

    def batch(self, indices: ArrayLike) -> Batch:
        """The items `indices` of this data set, (batch,), as one batch.

        Returns:
            `SpikeEvents` or frames (batch, num_steps, num_channels), float32; labels (batch,), int64; speakers
            (batch,), int64.

        Raises:
            ValueError: `indices` is not a list of integers in [-num_items, num_items).
        """
        chosen = self.indices[indices_of(indices, len(self))]
        speakers = np.full(chosen.size, -1) if self.recordings.speakers is None else self.recordings.speakers[chosen]
        inputs = self._table.batch(chosen) if self._table else self._steps.events(self.recordings, chosen)
        return inputs, torch.from_numpy(self.recordings.labels[chosen]), torch.from_numpy(speakers)

    @staticmethod
    def collate(items: Sequence[Item]) -> Batch:
        """Items put into one batch, as a ``collate_fn``; items that a DataLoader fetched together are binned together.

        Args:
            items: at least one, all of the same output and size.

        Returns:
            `SpikeEvents` or frames (batch, num_steps, num_channels), float32; labels (batch,), int64; speakers
            (batch,), int64.

        Raises:
            ValueError: `items` is empty.
        """
        inputs, labels, speakers = collate(items)
        return inputs, labels, speakers

    def __repr__(self) -> str:
        shape = f"num_steps={self.num_steps}, num_channels={self.num_channels}"
        return (
            f"SHDDataset(num_items={len(self)}, {shape}, bin_ms={self._steps.bin_us / 1000}, output={self.output!r}, "
            f"binary={self.binary})"
        )
