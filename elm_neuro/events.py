"""A batch of spike trains as indices: what a sparse data set hands to a neuron in place of dense frames.

Longer than most: one class, whose checks and ways to be made stand in it; a quarter is docstrings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import FrozenInstanceError
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

Array: TypeAlias = Tensor | np.ndarray[Any, np.dtype[Any]]


class SpikeEvents:
    """Spikes of a batch in compressed rows, one row a (sample, time step), batch-major.

    The spikes of sample ``i`` in step ``t`` are entries ``indptr[row] : indptr[row + 1]`` of `channel` and `value`,
    with ``row = i * num_steps + t``. A channel may occur twice in a row; the values add up, as in a dense frame of
    counts.

    Args:
        indptr: row boundaries, (batch * num_steps + 1,), int64, from 0 to the number of events, never falling.
        channel: input channel of each event, (num_events,), int64, in [0, num_channels).
        value: sign, count or weight of each event, (num_events,), floating; None when every event counts 1.
        shape: (batch, num_steps, num_channels) of the dense frames these events stand for.

    Raises:
        TypeError: a tensor has the wrong dtype.
        ValueError: the tensors do not describe such rows; the message says which rule broke.

    >>> events = SpikeEvents.from_frames(torch.tensor([[[0.0, 2.0], [0.0, 0.0], [-1.0, 0.0]]]))
    >>> events
    SpikeEvents(batch=1, num_steps=3, num_channels=2, num_events=2)
    >>> events.indptr, events.channel, events.value
    (tensor([0, 1, 1, 2]), tensor([1, 0]), tensor([ 2., -1.]))
    """

    indptr: Tensor
    channel: Tensor
    value: Tensor | None
    shape: tuple[int, int, int]

    # No dataclass: Lightning takes those apart, and refuses frozen ones, where it converts a batch's precision.
    def __init__(self, indptr: Tensor, channel: Tensor, value: Tensor | None, shape: tuple[int, int, int]) -> None:
        vars(self).update(indptr=indptr, channel=channel, value=value, shape=tuple(int(size) for size in shape))
        self._check()
        self._lay_out()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """From a pickle, which may be a stranger's: checked as when they are made."""
        vars(self).update(state)
        self._check()
        self._lay_out()

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}: SpikeEvents are not changed, others are made")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}: SpikeEvents are not changed, others are made")

    def _lay_out(self) -> None:
        """One entry behind the other, as kernels read them."""
        laid_out = {name: tensor.contiguous() for name, tensor in vars(self).items() if isinstance(tensor, Tensor)}
        vars(self).update(laid_out)

    def _check(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 0:
            raise ValueError(f"shape must be (batch, num_steps, num_channels) with no negative size, got {self.shape}")
        for name, tensor in (("indptr", self.indptr), ("channel", self.channel)):
            if not isinstance(tensor, Tensor):
                raise TypeError(
                    f"{name} must be a tensor, got {type(tensor).__name__}; SpikeEvents.from_arrays takes arrays"
                )
            if tensor.dtype != torch.int64:
                raise TypeError(f"{name} must have dtype torch.int64, got {tensor.dtype}")
            if tensor.ndim != 1:
                raise ValueError(f"{name} must have one dimension, got shape {tuple(tensor.shape)}")
        num_rows = self.shape[0] * self.shape[1]
        if self.indptr.shape[0] != num_rows + 1:
            raise ValueError(
                f"indptr must have batch * num_steps + 1 = {num_rows + 1} entries, got {self.indptr.shape[0]}"
            )
        if self.value is not None:
            if not self.value.is_floating_point():
                raise TypeError(f"value must be floating point, got {self.value.dtype}")
            if self.value.shape != self.channel.shape:
                raise ValueError(
                    f"value must have one entry per event, ({self.channel.shape[0]},), got {tuple(self.value.shape)}"
                )
            if self.value.requires_grad:
                raise ValueError(
                    "value must not require a gradient: events are data; pass dense frames to differentiate the input"
                )
        devices = {tensor.device for tensor in (self.indptr, self.channel, self.value) if tensor is not None}
        if len(devices) > 1:
            raise ValueError(f"indptr, channel and value must be on one device, got {sorted(map(str, devices))}")
        # elsewhere these reads would wait for the device; compiled code cannot look, the kernels of the CPU do
        if self.indptr.device.type == "cpu" and not torch.compiler.is_compiling():
            self.validate()

    def validate(self) -> None:
        """Check the content of the tensors: rows that never fall, channels in range.

        Done on construction on the CPU; on another device only by calling this, because it waits for the device.

        Raises:
            ValueError: a row boundary or a channel is out of range.
        """
        num_events = self.channel.shape[0]
        if (
            int(self.indptr[0]) != 0
            or int(self.indptr[-1]) != num_events
            or bool((self.indptr[1:] < self.indptr[:-1]).any())
        ):
            raise ValueError(f"indptr must rise from 0 to the number of events, {num_events}, without falling")
        if num_events:
            low, high = (int(extreme) for extreme in self.channel.aminmax())
            if low < 0 or high >= self.shape[2]:
                raise ValueError(f"channel must be in [0, {self.shape[2]}), got {low if low < 0 else high}")

    @classmethod
    def from_frames(cls, frames: Tensor) -> SpikeEvents:
        """Events of dense frames; `value` is None where every entry is 0 or 1.

        Args:
            frames: (batch, num_steps, num_channels), counts, signs or weights, any real dtype. They are taken as data:
                a gradient ends here. Where one is meant to go on, a layer takes the frames themselves.

        Raises:
            ValueError: `frames` have another shape.
            TypeError: they are no dense tensor of real numbers.

        >>> SpikeEvents.from_frames(torch.ones(1, 2, 3))
        SpikeEvents(batch=1, num_steps=2, num_channels=3, num_events=6)
        """
        if not isinstance(frames, Tensor):
            raise TypeError(f"frames must be a tensor, got {type(frames).__name__}")
        if frames.is_nested or frames.layout != torch.strided:
            what = "a nested tensor" if frames.is_nested else f"a tensor of layout {frames.layout}"
            raise TypeError(f"frames must be dense, got {what}")
        if frames.ndim != 3:
            raise ValueError(f"frames must have shape (batch, num_steps, num_channels), got {tuple(frames.shape)}")
        if frames.is_complex():
            raise TypeError(f"frames must be real, got {frames.dtype}")
        batch, num_steps, num_channels = frames.shape
        flat = frames.detach().reshape(-1)
        position, value = _nonzero(flat)
        plain = frames.dtype == torch.bool or bool((value == 1).all())
        if not plain and not value.is_floating_point():
            value = value.to(torch.get_default_dtype())
        indptr = torch.searchsorted(position, torch.arange(batch * num_steps + 1, device=frames.device) * num_channels)
        return cls(indptr, position % max(num_channels, 1), None if plain else value, (batch, num_steps, num_channels))

    @classmethod
    def from_arrays(
        cls, t: Array, x: Array, p: Array | None = None, *, delta_t: float, num_steps: int, num_channels: int
    ) -> SpikeEvents:
        """One sample from its (time, channel, value) arrays, in any order; events from `num_steps` on are left out.

        An event at time `t` falls into step ``floor(t / delta_t)``: bins are half-open and start at 0. A floating time
        below an edge by no more than its dtype's rounding, ``t * eps``, counts as on it: ``3 * delta_t`` of a simulator
        is in step 3, though 0.3 / 0.1 is 2.999... in binary.

        Args:
            t: times, (num_events,), in the unit of `delta_t`, not negative. Integer times are binned exactly.
            x: channels, (num_events,), integers in [0, num_channels).
            p: values such as +1 and -1, (num_events,); None when every event counts 1.
            delta_t: width of a step, in the unit of `t`.
            num_steps: number of steps.
            num_channels: number of channels.

        >>> times, channels = torch.tensor([1500, 0, 999]), torch.tensor([2, 0, 1])
        >>> events = SpikeEvents.from_arrays(times, channels, delta_t=1000, num_steps=2, num_channels=3)
        >>> events.to_dense()
        tensor([[[1., 1., 0.],
                 [0., 0., 1.]]])
        """
        if not (delta_t > 0 and math.isfinite(delta_t)):
            raise ValueError(f"delta_t must be positive, got {delta_t}")
        if num_steps < 0 or num_channels < 1:
            raise ValueError(
                f"num_steps must not be negative and num_channels at least 1, got {num_steps} and {num_channels}"
            )
        times = _array("t", t, None)
        channels, values = _array("x", x, times.shape[0]), None if p is None else _array("p", p, times.shape[0])
        if channels.is_floating_point():
            raise TypeError(f"x must be integers, got {channels.dtype}")
        if bool((~((times >= 0) & (times < torch.inf))).any()):
            raise ValueError(
                f"t must be finite and not negative, got {times[~((times >= 0) & (times < torch.inf))][0].item()}"
            )
        outside = (channels < 0) | (channels >= num_channels)
        if bool(outside.any()):
            raise ValueError(f"x must be in [0, {num_channels}), got {channels[outside][0].item()}")
        if values is not None and bool(values.isnan().any()):
            raise ValueError(f"p must not be NaN, got {int(values.isnan().sum())} of {values.shape[0]}")
        step = _steps(times, delta_t)
        keep = step < num_steps
        step, channel = step[keep].long(), channels[keep]
        order = torch.argsort(step, stable=True)
        value = None
        if values is not None:
            value = values[keep][order]
            value = value if value.is_floating_point() else value.to(torch.get_default_dtype())
        return cls(_indptr(step, num_steps), channel[order], value, (1, num_steps, num_channels))

    @classmethod
    def collate(cls, samples: Sequence[SpikeEvents]) -> SpikeEvents:
        """Put batches under one another; shorter ones are padded with empty steps at the end.

        Args:
            samples: at least one, all with the same number of channels.

        >>> one, two = SpikeEvents.from_frames(torch.ones(1, 2, 3)), SpikeEvents.from_frames(torch.ones(2, 1, 3))
        >>> SpikeEvents.collate([one, two])
        SpikeEvents(batch=3, num_steps=2, num_channels=3, num_events=12)
        """
        if not samples:
            raise ValueError("samples must hold at least one SpikeEvents, got none")
        channels = sorted({sample.num_channels for sample in samples})
        if len(channels) > 1:
            raise ValueError(f"samples must have the same number of channels, got {channels}")
        num_steps = max(sample.num_steps for sample in samples)
        counts = [torch.nn.functional.pad(sample._counts(), (0, num_steps - sample.num_steps)) for sample in samples]
        count = torch.cat(counts).flatten()
        value = None
        if any(sample.value is not None for sample in samples):
            value = torch.cat([sample._values() for sample in samples])
        channel = torch.cat([sample.channel for sample in samples])
        batch = sum(sample.batch for sample in samples)
        return cls(torch.nn.functional.pad(count.cumsum(0), (1, 0)), channel, value, (batch, num_steps, channels[0]))

    @property
    def batch(self) -> int:
        """Number of samples."""
        return self.shape[0]

    @property
    def num_steps(self) -> int:
        """Number of time steps, empty ones included."""
        return self.shape[1]

    @property
    def num_channels(self) -> int:
        """Number of input channels."""
        return self.shape[2]

    @property
    def num_events(self) -> int:
        """Number of stored events."""
        return int(self.channel.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the events lie."""
        return self.indptr.device

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool | None = None,
    ) -> SpikeEvents:
        """The same events on `device`, their values in the floating `dtype`; nothing waits where they go from pinned
        memory to a GPU, unless `non_blocking` says otherwise.
        """
        if dtype is not None and not dtype.is_floating_point:
            raise TypeError(f"dtype must be floating point, got {dtype}")
        if non_blocking is None:  # Lightning asks for it with tensors alone
            non_blocking = device is not None and torch.device(device).type == "cuda" and self.indptr.is_pinned()
        value = None if self.value is None else self.value.to(device=device, dtype=dtype, non_blocking=non_blocking)
        indptr, channel = (
            tensor.to(device=device, non_blocking=non_blocking) for tensor in (self.indptr, self.channel)
        )
        return self._with(indptr=indptr, channel=channel, value=value)

    def pin_memory(self) -> SpikeEvents:
        """The same events in page-locked memory, from where a GPU copies without waiting."""
        value = None if self.value is None else self.value.pin_memory()
        return self._with(indptr=self.indptr.pin_memory(), channel=self.channel.pin_memory(), value=value)

    def rows(self) -> Tensor:
        """Row ``sample * num_steps + step`` of each event, (num_events,), int64."""
        row = torch.arange(self.indptr.shape[0] - 1, device=self.device)
        return torch.repeat_interleave(row, self.indptr.diff(), output_size=self.num_events)

    def to_dense(self, dtype: torch.dtype | None = None) -> Tensor:
        """Dense frames, (batch, num_steps, num_channels), events of one channel and step added up."""
        batch, num_steps, num_channels = self.shape
        frames = torch.zeros(batch * num_steps * num_channels, dtype=dtype or self._dtype(), device=self.device)
        frames.index_add_(0, self.rows() * num_channels + self.channel, self._values().to(frames.dtype))
        return frames.view(self.shape)

    def dropout(self, p: float, *, generator: torch.Generator | None = None, scale: bool = True) -> SpikeEvents:
        """Drop each event with probability `p`; the others are scaled by ``1 / (1 - p)`` unless `scale` is False.

        Unlike dropout on frames, events that share a channel and step fall independently. On a GPU, which would have to
        be waited for to count the others, and in compiled code, those that are dropped stay with the value 0.

        >>> SpikeEvents.from_frames(torch.ones(1, 1, 4)).dropout(0.0).value is None
        True
        """
        if not 0.0 <= p < 1.0:
            raise ValueError(f"p must be in [0, 1), got {p}")
        if p == 0.0:
            return self
        keep = torch.rand(self.num_events, generator=generator, device=self.device) >= p
        factor = 1.0 / (1.0 - p) if scale else 1.0
        looks = self.device.type == "cpu" and not torch.compiler.is_compiling()
        return self._selected(keep, factor) if looks else self._silenced(keep, factor)

    def select(self, keep: Tensor) -> SpikeEvents:
        """Only the events where `keep`, (num_events,), bool, is True, in the same frames."""
        return self._selected(keep, 1.0)

    def _selected(self, keep: Tensor, factor: float) -> SpikeEvents:
        """Those where `keep` is True, their values times `factor`."""
        kept = keep.nonzero().squeeze(-1)
        channel, value = self.channel[kept], None if self.value is None else self.value[kept]
        if factor != 1.0:
            value = torch.full_like(channel, factor, dtype=self._dtype()) if value is None else value * factor
        indptr = torch.nn.functional.pad(keep.cumsum(0), (1, 0))[self.indptr]
        return self._with(indptr=indptr, channel=channel, value=value)

    def _silenced(self, keep: Tensor, factor: float) -> SpikeEvents:
        """As :meth:`_selected`, the others with the value 0."""
        return self._with(value=torch.where(keep, self._values() * factor, 0.0))

    def steps(self, start: int, stop: int) -> SpikeEvents:
        """The events of steps `start` to `stop` (exclusive), times counted from `start`."""
        start, stop, _ = slice(start, stop).indices(self.num_steps)
        step = self.rows() % max(self.num_steps, 1)
        inside = self.select((step >= start) & (step < stop))
        count = inside._counts()[:, start:stop].flatten()
        return inside._with(
            indptr=torch.nn.functional.pad(count.cumsum(0), (1, 0)),
            shape=(self.batch, max(stop - start, 0), self.num_channels),
        )

    def _with(self, **changed: Any) -> SpikeEvents:
        return SpikeEvents(**vars(self) | changed)

    def _counts(self) -> Tensor:
        return self.indptr.diff().view(self.batch, self.num_steps)

    def _dtype(self) -> torch.dtype:
        return torch.get_default_dtype() if self.value is None else self.value.dtype

    def _values(self) -> Tensor:
        return (
            torch.ones(self.num_events, dtype=self._dtype(), device=self.device) if self.value is None else self.value
        )

    def __repr__(self) -> str:
        batch, num_steps, num_channels = self.shape
        sizes = f"batch={batch}, num_steps={num_steps}, num_channels={num_channels}"
        return f"SpikeEvents({sizes}, num_events={self.num_events})"


def _nonzero(flat: Tensor) -> tuple[Tensor, Tensor]:
    """Rising positions and values of the entries that are not zero; on the CPU two float32 entries are looked at as
    one word.
    """
    wrapped = torch._C._are_functorch_transforms_active()  # around the memory
    if wrapped or flat.device.type != "cpu" or flat.dtype != torch.float32 or flat.shape[0] % 2:
        position = flat.nonzero().squeeze(-1)
        return position, flat[position]
    words = flat.resolve_neg().numpy().view(np.int64)
    pair = np.flatnonzero(words.astype(bool))
    both = torch.from_numpy(words[pair].view(np.float32))
    occupied = both.nonzero().squeeze(-1)
    return 2 * torch.from_numpy(pair)[occupied >> 1] + (occupied & 1), both[occupied]


def _array(name: str, values: Array, size: int | None) -> Tensor:
    """One column of events as a tensor, integers as int64."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "ui":
        values = values.astype(np.int64)
    tensor = values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
    if tensor.ndim != 1 or (size is not None and tensor.shape[0] != size):
        raise ValueError(
            f"{name} must have shape ({'num_events' if size is None else size},), got {tuple(tensor.shape)}"
        )
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    return tensor if tensor.is_floating_point() else tensor.long()


def _indptr(row: Tensor, num_rows: int) -> Tensor:
    return torch.nn.functional.pad(torch.bincount(row, minlength=num_rows).cumsum(0), (1, 0))


def _steps(times: Tensor, delta_t: float) -> Tensor:
    """Step of each time, a whole number; in float64 unless all is whole, so that no time is rounded once more."""
    if float(delta_t).is_integer() and not times.is_floating_point():
        return torch.div(times, int(delta_t), rounding_mode="floor")
    eps = torch.finfo(times.dtype if times.is_floating_point() else torch.float64).eps
    position = times.double() / delta_t
    return (position + position * eps).floor()
