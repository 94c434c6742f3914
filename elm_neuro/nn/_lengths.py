"""Samples that end before the others: what holds at each one's last valid step and past it."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from elm_neuro.backends.parts._lengths import last_valid

State = TypeVar("State", bound=tuple[Tensor, ...])

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # which torch does not compare


def last_output(y: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Output at each sample's last valid step.

    Args:
        y: (batch, time, ...).
        lengths: number of valid steps, (batch,), each at least 1; all steps by default.

    >>> last_output(torch.arange(6.0).view(2, 3, 1), torch.tensor([1, 3])).flatten()
    tensor([0., 5.])
    """
    if not y.shape[1]:
        raise ValueError(f"y must have at least one time step, got shape {tuple(y.shape)}")
    if lengths is None:
        return y[:, -1]
    lengths = given_lengths(lengths)
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be integers, got {lengths.dtype}")
    if lengths.shape != y.shape[:1] or bool((lengths < 1).any()) or bool((lengths > y.shape[1]).any()):
        raise ValueError(f"lengths must be ({y.shape[0]},) numbers from 1 to {y.shape[1]}, got {lengths.tolist()}")
    return y[torch.arange(y.shape[0], device=y.device), lengths.to(y.device, torch.int64) - 1]


def given_lengths(lengths: Any) -> Tensor:
    """Lengths that may come as a list or an array, as a tensor that torch can compare."""
    try:
        given = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"lengths must be integers, got {lengths!r:.100}") from error
    return given.to(torch.int64) if given.dtype in UNSIGNED else given


def last_or_before(y: Tensor, lengths: Tensor | None, before: Tensor | None) -> Tensor:
    """Value of `y`, (batch, time, ...), at each sample's last valid step; for a sample without any, `before`, of which
    None is zeros.
    """
    if lengths is None and y.shape[1]:
        return y.select(1, -1).clone()  # a view would keep the whole record alive
    before = y.new_zeros(y.shape[0], *y.shape[2:]) if before is None else before
    return last_valid(y, lengths, before) if y.shape[1] else before


def where_any(last: Tensor, num_steps: int, lengths: Tensor | None, before: Tensor | None) -> Tensor:
    """`last`, (batch, ...), of samples that have a valid step; of the others, for which it is 0, `before`: None is
    zeros.
    """
    if before is None or (lengths is None and num_steps):
        return last
    return before if lengths is None else _where(lengths > 0, last, before)


def step_where_valid(y: Tensor, after: State, before: State, lengths: Tensor | None) -> tuple[Tensor, State]:
    """Output and state of one step for samples whose `lengths` are 1; the others give 0 and keep their state.

    Args:
        y: output of the step, (batch, ...).
        after: state after the step.
        before: state before it.
        lengths: 0 or 1 for each sample, (batch,); None is 1 for all.
    """
    if lengths is None:
        return y, after
    goes_on = lengths > 0
    parts = (_where(goes_on, part, old) for part, old in zip(after, before, strict=True))
    return _where(goes_on, y, torch.zeros_like(y)), type(after)(*parts)


def _where(condition: Tensor, one: Tensor, other: Tensor) -> Tensor:
    return torch.where(condition.to(one.device).view(-1, *[1] * (one.ndim - 1)), one, other)
