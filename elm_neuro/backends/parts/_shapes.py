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
