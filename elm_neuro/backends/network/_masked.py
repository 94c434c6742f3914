"""Dropout that holds for a whole sequence: a factor for each sample and input."""

from __future__ import annotations

from torch import Tensor

from elm_neuro.events import SpikeEvents


def masked(x: Tensor | SpikeEvents, factor: Tensor | None) -> Tensor | SpikeEvents:
    """`x` times `factor`, (batch, input_size), in every step; events of a factor of 0 are left out.

    >>> import torch
    >>> events = SpikeEvents.from_frames(torch.ones(1, 2, 3))
    >>> masked(events, torch.tensor([[0.0, 1.25, 0.0]])).to_dense()[0, 1]
    tensor([0.0000, 1.2500, 0.0000])
    """
    if factor is None:
        return x
    if not isinstance(x, SpikeEvents):
        return x * factor.unsqueeze(1)
    scale = factor.detach()[x.rows() // max(x.num_steps, 1), x.channel]
    value = scale if x.value is None else x.value * scale
    return SpikeEvents(x.indptr, x.channel, value, x.shape).select(scale != 0)
