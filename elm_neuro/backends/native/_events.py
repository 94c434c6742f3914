"""Events as the native kernels read them: those of SpikeEvents, or found in dense frames."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from elm_neuro.backends.native import _library
from elm_neuro.backends.parts._plain import resolved
from elm_neuro.backends.parts._projection import steps_within_reach
from elm_neuro.events import SpikeEvents

# Dense frames are run as events where fewer of their entries than this are spikes; looking for them gives up as soon as
# there are more. Measured for 20 to 100 memory units: events win up to 0.2 or 0.45, but room for that many costs page
# faults where there are few.
SPARSE_DENSITY = 0.1
SPARSE_INPUTS = 12  # one-hot tokens of 16 kinds are worth the search, a handful of inputs is not
DTYPES = (torch.float32, torch.float64)


class Events(NamedTuple):
    """Events of a batch as the library reads them: those of row ``sample * num_steps + step`` are entries begin[row]
    : end[row].
    """

    begin: Tensor  # (batch * num_steps,), int64; a view where `end` continues it
    end: Tensor
    channel: Tensor  # (num_events,), int32 or int64
    value: Tensor | None  # (num_events,)
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, events: SpikeEvents, dtype: torch.dtype) -> Events:
        """Those of a batch of spike trains, their values in `dtype`."""
        value = None if events.value is None else resolved(events.value).to(dtype).contiguous()
        indptr = events.indptr.contiguous()
        made = cls(indptr[:-1], indptr[1:], events.channel.contiguous(), value, events.shape)
        made.check()
        return made

    @classmethod
    def inside(
        cls, indptr: Tensor | None, channel: Tensor | None, value: Tensor | None, sizes: Sequence[int]
    ) -> Events | None:
        """Those that an operator gets, None without any: the fields of SpikeEvents, values in the parameters' dtype."""
        if indptr is None or channel is None:
            return None
        batch, num_steps, num_input = sizes
        indptr, value = indptr.contiguous(), None if value is None else resolved(value).contiguous()
        made = cls(indptr[:-1], indptr[1:], channel.contiguous(), value, (batch, num_steps, num_input))
        made.check()
        return made

    def check(self) -> None:
        """Refuse events that were changed after they had been made, whose rows or channels would lead the kernels
        outside of arrays; those found in frames are nobody else's.

        Raises:
            ValueError: a row, a channel or the number of values is out of range.
        """
        begin, end, channel, value, (batch, num_steps, num_input) = self
        if channel.dtype != torch.int64:
            return
        num_row, num_event = batch * num_steps, channel.shape[0]
        if (
            begin.shape[0] != num_row
            or end.shape[0] != num_row
            or (value is not None and value.shape[0] != num_event)
            or _library.library().elm_check_events(
                num_row, num_event, num_input, begin.data_ptr(), end.data_ptr(), channel.data_ptr()
            )
        ):
            raise ValueError(
                f"x was changed after it had been made: {num_row} rows must rise within its {num_event} events, "
                f"with channels in [0, {num_input}) and as many values as events"
            )

    @classmethod
    def searched_for(
        cls, frames: Tensor, dtype: torch.dtype, sparse_input: str, density: float = SPARSE_DENSITY
    ) -> Events | None:
        """Those in dense frames, where these are sparse; `sparse_input` as in :func:`elm_neuro.backends.scan`."""
        if not searched(frames, sparse_input):
            return None
        frames = frames if frames.dtype in DTYPES else frames.to(dtype)
        events = cls.compacted(frames, dtype, density)
        return cls.compacted(frames, dtype, density=1.0) if events is None and sparse_input == "on" else events

    @classmethod
    def compacted(cls, x: Tensor, dtype: torch.dtype, density: float = SPARSE_DENSITY) -> Events | None:
        """The events of dense frames, or None where there are more than `density` of the entries."""
        x = x if x.stride(2) == 1 else x.contiguous()
        batch, num_steps, num_input = x.shape
        # as much room for any number of threads: torch.utils.checkpoint holds a second pass to the shapes of the first
        size = room_for(x.numel(), density)
        parts = max(1, min(_library.threads_for(x.numel()), batch)) if density < 1.0 else 1
        room = size // parts
        begin = x.new_empty(batch * num_steps, dtype=torch.int64)
        end, channel = torch.empty_like(begin), _library.large(begin, size, torch.int32)
        value = _library.large(x, size)
        args = _library.FramesArgs(batch, num_steps, num_input, x.stride(0), x.stride(1), room, parts)
        args.frames, args.begin, args.end = x.data_ptr(), begin.data_ptr(), end.data_ptr()
        args.channel, args.value = channel.data_ptr(), value.data_ptr()
        status = _library.library().elm_compact(x.dtype == torch.float64, parts, ctypes.byref(args))
        if status & 1:
            return None
        values = value.to(dtype) if status else None  # None: every event counts 1
        return cls(begin, end, channel, values, (batch, num_steps, num_input))

    def discounted_sum(self, kappa: float, dtype: torch.dtype, lengths: Tensor | None) -> Tensor:
        """As :func:`elm_neuro.backends.parts._projection.discounted_sum`, by the library."""
        batch, num_steps, num_input = self.shape
        total = self.begin.new_zeros(batch, num_input, dtype=dtype)
        wide = self.channel.dtype == torch.int64
        tensors = (lengths, self.begin, self.end, self.channel, self.value, total)
        reach = steps_within_reach(kappa, num_steps, dtype)
        sizes = batch, num_steps, num_input, reach, kappa, wide
        _library.library().elm_discount(dtype == torch.float64, *sizes, *map(_library.address, tensors))
        return total


def room_for(num_entry: int, density: float) -> int:
    """Room for the events of frames with so many entries, of which this part is any at most."""
    return math.ceil(density * num_entry)


def room_for_found(frames: Tensor | None, sparse_input: str, density: float, like: Tensor) -> list[Tensor]:
    """Begin, end, channel and value of events that a pass inside compiled code may find in frames, for its backward
    pass: as large for any number of them. Empty where there is nothing to find, or room for all would be needed.
    """
    num_row = size = 0
    if frames is not None and sparse_input == "auto":
        num_row, size = frames.shape[0] * frames.shape[1], room_for(frames.numel(), density)
    begin, end = (like.new_empty(num_row, dtype=torch.int64) for _ in range(2))
    return [begin, end, like.new_empty(size, dtype=torch.int32), like.new_empty(size)]


def searched(x: Tensor, sparse_input: str) -> bool:
    """Whether events are looked for in these frames."""
    if sparse_input != "auto":
        return sparse_input == "on"
    return x.ndim == 3 and x.shape[2] >= SPARSE_INPUTS and x.dtype in DTYPES and not x.requires_grad
