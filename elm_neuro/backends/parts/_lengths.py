"""Samples of unequal length in one batch: which steps are valid, and what a record holds at each sample's last one."""

from __future__ import annotations

import torch
from torch import Tensor

from elm_neuro.events import SpikeEvents


def own(lengths: Tensor) -> Tensor:
    """A copy that only a pass knows: its kernels read them again on the way back, as far as they say, and NumPy may
    have written to the caller's memory in between without torch's noticing.
    """
    return lengths.clone(memory_format=torch.contiguous_format)


def valid(lengths: Tensor, like: Tensor) -> Tensor:
    """Whether a step lies before its sample's end, (batch, time, 1, ...) for `like`, (batch, time, ...)."""
    mask = torch.arange(like.shape[1], device=lengths.device) < lengths[:, None]
    return mask.view(*mask.shape, *[1] * (like.ndim - 2))


def without_padding(x: Tensor | SpikeEvents, lengths: Tensor) -> Tensor | SpikeEvents:
    """`x`, silent past each sample's end, whatever stood there."""
    if isinstance(x, SpikeEvents):
        row = x.rows()
        return x.select(row % x.num_steps < lengths[row // x.num_steps])
    return torch.where(valid(lengths, x), x, 0.0)


def silent_past(x: Tensor | SpikeEvents, lengths: Tensor) -> Tensor | SpikeEvents:
    """As :func:`without_padding`, without looking which events are left: their values are 0 past a sample's end. Those
    that count 1 stay, for passes that read nothing there, where only values that are no numbers would be seen.
    """
    if isinstance(x, Tensor):
        return without_padding(x, lengths)
    if x.value is None:
        return x
    row = x.rows()
    value = torch.where(row % x.num_steps < lengths[row // x.num_steps], x.value, 0.0)
    return SpikeEvents(x.indptr, x.channel, value, x.shape)


def last_valid(record: Tensor, lengths: Tensor | None, initial: Tensor) -> Tensor:
    """Entry of `record`, (batch, time, ...), at each sample's last valid step; `initial` where there is none."""
    if lengths is None:
        return record.select(1, -1).clone()  # a view would keep the whole record alive
    last = record[torch.arange(record.shape[0], device=lengths.device), (lengths - 1).clamp(min=0)]
    return torch.where((lengths > 0).view(-1, *[1] * (last.ndim - 1)), last, initial)


def last_or_zeros(record: Tensor, lengths: Tensor | None) -> Tensor:
    """Entry of `record`, (batch, time, ...), at each sample's last valid step; zeros where there is none."""
    zeros = record.new_zeros(record.shape[0], *record.shape[2:])
    return last_valid(record, lengths, zeros) if record.shape[1] else zeros


def where_running(running: Tensor, after: Tensor, before: Tensor) -> Tensor:
    """A state's part after a step, (batch, ...), of samples that are `running`, (batch,), and before it of the others.

    >>> where_running(torch.tensor([True, False]), torch.ones(2, 1), torch.zeros(2, 1)).flatten()
    tensor([1., 0.])
    """
    return torch.where(running.view(-1, *[1] * (after.ndim - 1)), after, before)


def cut_at(lengths: Tensor | None, y: Tensor) -> Tensor:
    """`y`, (batch, time, ...), zero past each sample's end."""
    return y if lengths is None else torch.where(valid(lengths, y), y, 0.0)
