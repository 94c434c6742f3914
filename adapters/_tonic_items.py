"""One item of a tonic data set, and what caches keep of it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from elm_neuro import __version__
from elm_neuro.adapters._tonic_settings import digest
from elm_neuro.datasets import (
    ChannelDrop,
    ChannelJitter,
    EventDrop,
    InputDropout,
    PoolChannels,
    TimeJitter,
    TimeWarp,
    ToRaster,
    sample_key,
)
from elm_neuro.datasets._processes import SharedNumber
from elm_neuro.datasets.shd._recordings import NUM_CHANNELS

OURS = (
    ChannelDrop,
    ChannelJitter,
    EventDrop,
    InputDropout,
    PoolChannels,
    TimeJitter,
    TimeWarp,
    ToRaster,
)  # which take no events, too


class Face:
    """What a tonic data set does with one item: events or a raster, then the transforms, which draw from (seed, epoch,
    index).
    """

    sensor_size = (NUM_CHANNELS, 1, 1)
    dtype = np.dtype([("t", int), ("x", int), ("p", int)])
    ordering = dtype.names

    def __init__(
        self,
        num_channels: int,
        raster: ToRaster | None,
        transform: Callable[[Any], Any] | None,
        target_transform: Callable[[Any], Any] | None,
        transforms: Callable[[Any, Any], Any] | None,
    ) -> None:
        self.transform, self.target_transform, self.transforms = transform, target_transform, transforms
        self._raster = raster
        if num_channels != NUM_CHANNELS:
            self.sensor_size = (num_channels, 1, 1)
        self._on_disk = False  # whether a folder of this epoch has been handed out
        self._in_memory = SharedNumber()  # 1 where a cache keeps items of this epoch in memory, of a worker, too

    def item(
        self, times: NDArray[Any], units: NDArray[Any], target: np.int64, epoch: int, index: int, training: bool
    ) -> tuple[Any, Any]:
        if not int(self._in_memory) and _asked_by_a_cache():
            self._in_memory.set(1)
        data: Any = np.empty(times.size, dtype=self.dtype)
        data["t"], data["x"], data["p"] = times, units, 1
        label: Any = target
        if self._raster is not None:
            data = self._raster(data)
        with sample_key(epoch, index, training=training):
            if self.transform is not None:
                data = _apply(self.transform, data)
            if self.target_transform is not None:
                label = self.target_transform(label)
            if self.transforms is not None:
                data, label = self.transforms(data, label)
        return data, label

    def folder_of(self, folder: str | os.PathLike[str], name: str, *content: Any) -> str:
        called = (self._raster, self.transform, self.target_transform, self.transforms)
        path = os.path.join(os.fspath(folder), digest((__version__, name, content, called), name=name)[:32])
        self._on_disk = True
        return path

    def leave_epoch(self, now: int, epoch: int) -> None:
        """Refuse or tell of what is kept of the epoch that ends."""
        if epoch == now:
            return
        if self._on_disk:
            raise ValueError(
                f"epoch must stay {now}, of which cache_path made a cache, got {epoch}; cache a new data set"
            )
        if int(self._in_memory):
            warnings.warn(
                f"a MemoryCachedDataset keeps items of epoch {now} and serves them in epoch {epoch}: make it anew",
                stacklevel=3,
            )
            self._in_memory.set(0)


def _apply(transform: Callable[[Any], Any], data: Any) -> Any:
    """Call `transform`, also on a sample without a spike, at which tonic's Compose stops, so that no raster would come
    out.
    """
    from tonic.transforms import Compose  # the host is imported, and missed, by the adapter

    if len(data) or not isinstance(transform, Compose):
        return transform(data)
    for part in transform.transforms:
        if len(data) or isinstance(part, (*OURS, Compose)):
            data = _apply(part, data)
    return data


def _asked_by_a_cache() -> bool:
    """Whether it is a MemoryCachedDataset that asks for an item, itself or by a Subset in between.

    Only the calls on the way here know: what it keeps it never asks for again.
    """
    frame: FrameType | None = sys._getframe(1)
    for _ in range(6):
        frame = None if frame is None else frame.f_back
        if frame is not None and frame.f_code.co_qualname == "MemoryCachedDataset.__getitem__":
            return True
    return False
