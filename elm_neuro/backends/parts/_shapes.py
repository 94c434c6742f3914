"""Shapes of what a scan works with: kernels read as far as they are told, and torch's broadcasting would hide a vector
of one entry.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

Shape = tuple[int, ...]


def check_shapes(named: Iterable[tuple[str, Tensor | None, Shape]]) -> None:
    """Refuse a tensor that does not have the shape beside it; None has any.

    Raises:
        ValueError: one has another; the message names it and both shapes.

    >>> check_shapes([("beta", torch.zeros(2), (3,))])
    Traceback (most recent call last):
    ValueError: beta must have shape (3,), got (2,)
    """
    if torch.compiler.is_compiling():  # what is compiled has run with these parameters, or fails in its operators
        return
    for name, tensor, shape in named:
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")


def check_dtypes(named: Iterable[tuple[str, Tensor | None, Shape]], like: Tensor) -> None:
    """Refuse a floating tensor of another dtype than `like`, and lengths that are not int64: kernels read memory as
    what they are told that it holds.

    Raises:
        TypeError: one has another; the message names it and both.

    >>> check_dtypes([("beta", torch.zeros(2).double(), (2,))], torch.zeros(2))
    Traceback (most recent call last):
    TypeError: beta must be torch.float32, got torch.float64
    """
    if torch.compiler.is_compiling():
        return
    for name, tensor, _ in named:
        if tensor is None:
            continue
        wanted = torch.int64 if name == "lengths" else like.dtype
        if tensor.dtype != wanted and (name == "lengths" or tensor.is_floating_point()):
            raise TypeError(f"{name} must be {wanted}, got {tensor.dtype}")
