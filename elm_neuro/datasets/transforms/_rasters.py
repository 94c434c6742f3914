"""Events to rasters, and dropout of inputs for both; frozen dataclasses as in `_transforms`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from elm_neuro.datasets.shd._recordings import NUM_CHANNELS
from elm_neuro.datasets.transforms._event_arrays import (
    Array,
    Events,
    check_channels,
    check_real,
    check_whole,
    read_events,
    weights,
)
from elm_neuro.datasets.transforms._random import generator, training
from elm_neuro.events import SpikeEvents

X = TypeVar("X", Array, Tensor, SpikeEvents)


@dataclass(frozen=True)
class ToRaster:
    """Events to a raster: how many spikes each channel has in each step.

    A spike at time t falls into step ``t // bin_us``: bins are half-open and start at 0, whenever the first spike
    comes. Spikes at or past `duration_us` are left out. There are ``ceil(duration_us / bin_us)`` steps, the last of
    which may be shorter. Order does not matter. The field p is summed where it is floating (a weight) and not looked at
    where it is an integer (a polarity).

    Args:
        bin_us: width of a step in microseconds.
        duration_us: length of the raster in microseconds.
        num_channels: number of channels.
        binary: whether several spikes of one channel and step count as one.
        axes: "tc" gives (time, channel), "tpc" (time, 1, channel) as tonic's ToFrame, "ct" (channel, time).

    Returns:
        A new array of float32, of the same shape for every sample, also for an empty one. Mind that tonic's Compose
        hands an empty sample on without calling its transforms: put ToRaster outside of it where there are samples
        without a spike.

    Raises:
        ValueError: an argument or a channel is out of range, or the events have a second spatial axis y.
        TypeError: what came are not events of integers.

    >>> ToRaster(bin_us=3000, duration_us=10_000, num_channels=2)((np.array([0, 2999, 3000, 9999, 10_000]),
    ...     np.array([0, 0, 1, 1, 1])))
    array([[2., 0.],
           [0., 1.],
           [0., 0.],
           [0., 1.]], dtype=float32)
    """

    bin_us: int = 10_000
    duration_us: int = 1_000_000
    num_channels: int = NUM_CHANNELS
    binary: bool = False
    axes: Literal["tc", "tpc", "ct"] = "tc"

    def __post_init__(self) -> None:
        for name in ("bin_us", "duration_us", "num_channels"):
            check_whole(name, getattr(self, name), 1, 2**31)
        if self.axes not in ("tc", "tpc", "ct"):
            raise ValueError(f'axes must be "tc", "tpc" or "ct", got {self.axes!r}')

    @property
    def num_steps(self) -> int:
        """Number of steps of the raster."""
        return -(-self.duration_us // self.bin_us)

    def __call__(self, events: Events) -> NDArray[np.float32]:
        times, channels = read_events(events)
        if isinstance(events, np.ndarray) and "y" in (events.dtype.names or ()):
            raise ValueError(f"events must have one spatial axis, x, got fields {events.dtype.names}")
        check_channels(channels, self.num_channels)
        weight = weights(events)
        if times.size and times.max() >= self.duration_us:
            keep = times < self.duration_us
            times, channels, weight = times[keep], channels[keep], None if weight is None else weight[keep]
        if times.dtype not in (np.int32, np.int64):
            times = times.astype(np.int64)
        cells = times // times.dtype.type(self.bin_us) * np.int64(self.num_channels) + channels.astype(
            np.int64, copy=False
        )
        flat = np.zeros(self.num_steps * self.num_channels, dtype=np.float32)
        if weight is not None:
            np.add.at(flat, cells, weight.astype(np.float32))
        elif not self.binary:
            np.add.at(flat, cells, np.float32(1))
        if self.binary:
            flat[cells] = 1.0
        raster = flat.reshape(self.num_steps, self.num_channels)
        return (
            raster[:, None] if self.axes == "tpc" else np.ascontiguousarray(raster.T) if self.axes == "ct" else raster
        )


@dataclass(frozen=True)
class InputDropout:
    """Drop each entry of a raster, or each event, with probability `p` in training; the others count ``1 / (1 - p)``
    times as much.

    Outside of training it hands its input on as it is. In a structured array the weight becomes field p, as float32,
    which `ToRaster` sums; a pair (times, channels) has no room for a weight and is refused. Of events that share a
    channel and step each falls by itself.

    Args:
        p: probability, in [0, 1).
        scale: False leaves what stays as it was, as the authors do.
        training: None goes by the list of the data set that loads the sample: on for training lists, off for validation
            and test lists, and on where no data set of this package loads it.
        seed: not negative.

    Raises:
        TypeError: what came is neither a raster (array or Tensor), nor `SpikeEvents`, nor a structured array with a
            field p.

    >>> InputDropout(0.5, training=False)(np.ones(3, dtype=np.float32))
    array([1., 1., 1.], dtype=float32)
    >>> set(InputDropout(0.5, training=True)(np.ones(100, dtype=np.float32)).tolist()) == {0.0, 2.0}
    True
    """

    p: float
    scale: bool = True
    training: bool | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_real("p", self.p, 0.0, 1.0)
        if self.p == 1.0:
            raise ValueError("p must be in [0, 1), got 1.0")
        check_whole("seed", self.seed, 0, 2**63)

    def __call__(self, inputs: X) -> X:
        active = (training() if self.training is None else self.training) and self.p > 0.0
        if isinstance(inputs, SpikeEvents):
            return self._events(inputs) if active else inputs
        if isinstance(inputs, Tensor):
            floating = inputs.dtype if inputs.is_floating_point() else torch.float32
            return (
                inputs * torch.from_numpy(self._mask(tuple(inputs.shape))).to(inputs.device, floating)
                if active
                else inputs.clone()
            )
        if not isinstance(inputs, np.ndarray) or inputs.dtype.kind not in "Vbuif":
            raise TypeError(
                f"inputs must be a raster, SpikeEvents or a structured array, got a {type(inputs).__name__}"
            )
        if inputs.dtype.names is not None:
            if "p" not in inputs.dtype.names:
                raise TypeError(f"inputs must have a field p to carry the weight, got fields {inputs.dtype.names}")
            return self._structured(inputs) if active else inputs.copy()
        dtype = inputs.dtype if inputs.dtype.kind == "f" else np.dtype(np.float32)
        return inputs.astype(dtype) * self._mask(inputs.shape).astype(dtype) if active else inputs.copy()

    @property
    def _weight(self) -> float:
        return 1.0 / (1.0 - self.p) if self.scale else 1.0

    def _mask(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        return np.where(generator(self.seed).random(shape) >= self.p, np.float32(self._weight), np.float32(0.0))

    def _events(self, events: SpikeEvents) -> SpikeEvents:
        keep = torch.from_numpy(generator(self.seed).random(events.num_events) >= self.p)
        kept = events.select(keep.to(events.device))
        if not self.scale:
            return kept
        value = torch.ones(kept.num_events, device=kept.device) if kept.value is None else kept.value
        return SpikeEvents(kept.indptr, kept.channel, value * self._weight, kept.shape)

    def _structured(self, events: Array) -> Array:
        kept = events[generator(self.seed).random(events.size) >= self.p]
        names = kept.dtype.names or ()
        scaled = np.empty(kept.size, dtype=[(name, "<f4" if name == "p" else kept.dtype[name]) for name in names])
        for name in names:
            scaled[name] = kept[name]
        if weights(kept) is None:
            scaled["p"] = 1.0  # an event counts once, whatever its polarity
        scaled["p"] *= self._weight
        return scaled
