"""The input of a native pass: frames, or the events in them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from elm_neuro.backends.elm._native_operands import lies_time_first
from elm_neuro.backends.native._events import Events, searched
from elm_neuro.backends.parts._lengths import valid
from elm_neuro.backends.parts._projection import discounted_sum
from elm_neuro.events import SpikeEvents


class Arriving(NamedTuple):
    """Input of a pass, settled: frames or events, of the parameters' dtype, lengths contiguous."""

    frames: Tensor | None  # (batch, time, [num_neuron,] input_size), 0 past each sample's end
    events: Events | None  # whatever stands past a sample's end, the pass does not read
    lengths: Tensor | None
    batch: int
    num_steps: int
    time_first: bool  # in memory
    unsearched: bool = False  # frames that the pass itself searches for events; they are as they came

    @classmethod
    def of(
        cls,
        x: Tensor | SpikeEvents,
        dtype: torch.dtype,
        lengths: Tensor | None,
        sparse_input: str,
        *,
        search: bool = True,
    ) -> Arriving:
        """The input as events where it is sparse; without `search` frames may wait for the pass to look."""
        batch, num_steps = x.shape[:2]
        if isinstance(x, SpikeEvents):
            return cls(None, Events.of(x, dtype), lengths, batch, num_steps, time_first=False)
        time_first = lies_time_first(x)
        if not search and sparse_input == "auto" and x.dtype == dtype and searched(x, sparse_input):
            x = x if x.stride(2) == 1 else x.contiguous()
            return cls(x, None, lengths, batch, num_steps, time_first, unsearched=True)
        events = Events.searched_for(x, dtype, sparse_input)
        if events is not None:
            return cls(None, events, lengths, batch, num_steps, time_first)
        x = x.to(dtype)
        if lengths is not None:
            x = torch.where(valid(lengths, x), x, 0.0)
        return cls(x, None, lengths, batch, num_steps, time_first)

    def frames_or_raise(self) -> Tensor:
        return present(self.frames)

    def discounted_sum(self, kappa: Tensor) -> Tensor:
        """As :func:`elm_neuro.backends.parts._projection.discounted_sum`."""
        if self.events is not None:
            return self.events.discounted_sum(float(kappa), kappa.dtype, self.lengths)
        return discounted_sum(self.frames_or_raise(), kappa, self.lengths)


def present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise RuntimeError("a tensor is asked for that this pass does not have")
    return tensor
