"""What a scan works with fits together: kernels read memory as what they are told that it holds, and as far, and
torch's broadcasting would hide a vector of one entry.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Shape = tuple[int, ...]


def check_operands(
    named: Iterable[tuple[str, Tensor | None, Shape]], like: Tensor, *, dtype: torch.dtype | None = None
) -> None:
    """Refuse a tensor that does not have the shape beside it, is on another device than the parameter `like`, or has
    another dtype, where that is not `dtype`; None is anything.

    Raises:
        ValueError: the shape or the device is another; the message names the tensor, the rule and what came.
        TypeError: the dtype is.

    >>> check_operands([("beta", torch.zeros(2), (3,))], torch.zeros(3))
    Traceback (most recent call last):
    ValueError: beta must have shape (3,), got (2,)
    >>> check_operands([("beta", torch.zeros(3).double(), (3,))], torch.zeros(3))
    Traceback (most recent call last):
    TypeError: beta must be torch.float32, got torch.float64
    """
    if torch.compiler.is_compiling():  # what is compiled has run with these parameters, or fails in its operators
        return
    wanted, device = dtype or like.dtype, like.device
    for name, tensor, shape in named:
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.dtype is not wanted:
            raise TypeError(f"{name} must be {wanted}, got {tensor.dtype}")
        if tensor.device != device:
            raise ValueError(f"{name} must be on {device} like the other parameters, got {tensor.device}")


def check_lengths(lengths: Tensor | None, batch: int, num_steps: int, device: torch.device) -> None:
    """Refuse numbers of valid steps that are not (batch,) int64 from 0 to `num_steps` on `device`.

    Raises:
        ValueError: the shape, the device or a number is another.
        TypeError: the dtype is.

    >>> check_lengths(torch.tensor([3, 5]), 2, 4, torch.device("cpu"))
    Traceback (most recent call last):
    ValueError: lengths must be between 0 and the 4 steps of x, got 3 to 5
    """
    if lengths is None or torch.compiler.is_compiling():
        return
    if lengths.shape != (batch,):
        raise ValueError(f"lengths must have shape ({batch},), got {tuple(lengths.shape)}")
    if lengths.dtype != torch.int64:
        raise TypeError(f"lengths must be torch.int64, got {lengths.dtype}")
    if lengths.device != device:
        raise ValueError(f"lengths must be on {device} like the parameters, got {lengths.device}")
    if batch:
        low, high = (int(one) for one in lengths.aminmax())
        if low < 0 or high > num_steps:
            raise ValueError(f"lengths must be between 0 and the {num_steps} steps of x, got {low} to {high}")
