"""Backward passes written by hand, which cannot be differentiated again."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.autograd import Function

from elm_neuro.backends._select import no_second_derivative

Backward = Callable[..., tuple[Any, ...]]


def differentiable_once(backward: Backward) -> Backward:
    """A backward pass whose results, where a graph of it is asked for, raise when they are differentiated.

    ``torch.autograd.function.once_differentiable`` lets them pass as constants where the incoming gradients need no
    gradient themselves, as those of a sum: a penalty on a gradient would silently train nothing.
    """

    @wraps(backward)
    def run(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            results = backward(ctx, *grads)
        refused: tuple[Any, ...] = _Refused.apply(torch.empty(0, requires_grad=True), *results)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return refused

    return run


class _Refused(Function):
    @staticmethod
    def forward(ctx: Any, anchor: Any, *results: Any) -> tuple[Any, ...]:
        return results

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        raise RuntimeError(no_second_derivative())
