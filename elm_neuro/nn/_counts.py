"""Inputs that count spikes, for networks that were made for spikes that are there or not."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from elm_neuro.events import SpikeEvents


def as_binary(x: Tensor | SpikeEvents) -> Tensor | SpikeEvents:
    """1 where `x` is not 0, as its entries or the sums of its events are; NaN is no spike, and stays what it is.

    >>> as_binary(torch.tensor([0.0, 3.0, -1.0, torch.nan]))
    tensor([0., 1., 1., nan])
    """
    if isinstance(x, SpikeEvents):
        return _binary_events(x)
    ones = (x != 0).to(x.dtype)
    return torch.where(x.isnan(), x.detach(), ones) if x.is_floating_point() else ones


def _binary_events(x: SpikeEvents) -> SpikeEvents:
    place = _places(x)
    if x.value is None and _rises(place):
        return x
    if x.value is None:  # an event twice in one step
        place = torch.unique(place)
    else:
        place, entry = torch.unique(place, return_inverse=True)
        total = x.value.new_zeros(place.shape[0]).index_add_(0, entry, x.value.detach())
        place, total = place[total != 0], total[total != 0]
    count = torch.bincount(place // x.num_channels, minlength=x.batch * x.num_steps)
    indptr = torch.nn.functional.pad(count.cumsum(0), (1, 0))
    value = None if x.value is None or not bool(total.isnan().any()) else torch.where(total.isnan(), total, 1.0)
    return SpikeEvents(indptr, place % x.num_channels, value, x.shape)


def warn_of_counts(x: Tensor | SpikeEvents) -> None:
    """Say that the published network takes counts above 1 for 1, where `x` is counts and has such."""
    if isinstance(x, SpikeEvents):
        place = _places(x)
        twice = not _rises(place) and place.unique().shape[0] < place.shape[0]
        above = twice or (x.value is not None and bool((x.value > 1).any()))
        values = x.value
    else:
        above, values = x.numel() > 0 and bool(x.detach().amax() > 1), x.detach()
    if above and (values is None or bool((values == values.round()).all())):
        warnings.warn(
            "x has spike counts above 1, which the published ELM Network takes for 1: give binarize=True for that, or "
            "binarize=False to count them without this warning",
            stacklevel=3,
        )


def _places(x: SpikeEvents) -> Tensor:
    """Where in the dense frames each event is, (num_events,)."""
    return x.rows() * x.num_channels + x.channel


def _rises(place: Tensor) -> bool:
    return bool((place[1:] > place[:-1]).all())
