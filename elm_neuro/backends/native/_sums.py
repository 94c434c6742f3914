"""Sums of what a pass or a step gave, by which a layer sees whether there is NaN in it: torch's take as long as a
step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from elm_neuro.backends.native import _library
from elm_neuro.backends.parts._plain import FUNCTORCH, PLAIN

DTYPES = (torch.float32, torch.float64)


def sum_of(tensor: Tensor) -> float:
    """Of all entries.

    >>> sum_of(torch.tensor([1.0, float("nan")])), sum_of(torch.ones(2, 3))
    (nan, 6.0)
    """
    if _readable(tensor) and tensor.is_contiguous():
        return _sum(tensor, 1, 0, tensor.numel(), 0)
    return tensor.detach().sum().item()


def sum_of_last_step(y: Tensor) -> float:
    """Of the last step of a record, (batch, time, [num_neuron,] output_size).

    >>> sum_of_last_step(torch.arange(4.0).view(1, 2, 2))
    5.0
    """
    (batch, num_steps, *inner), (by_batch, by_time, *strides) = y.shape, y.stride()
    in_rows = strides[-1] == 1 and (len(inner) == 1 or strides[0] == inner[1])
    if in_rows and _readable(y):
        return _sum(y, batch, by_batch, math.prod(inner), (num_steps - 1) * by_time)
    return y.detach().select(1, -1).sum().item()


def _readable(tensor: Tensor) -> bool:
    """Whether the library may read the memory: that of a subclass, or of what is left of a transform, is elsewhere."""
    plain = type(tensor) in PLAIN and not FUNCTORCH.is_dead_tensor_wrapper(tensor)
    return plain and _library.missing() is None and tensor.dtype in DTYPES


def _sum(tensor: Tensor, num_rows: int, stride: int, size: int, first: int) -> float:
    start = tensor.data_ptr() + first * tensor.element_size()
    found: float = _library.library().elm_sum(tensor.dtype == torch.float64, num_rows, stride, size, start)
    return found
