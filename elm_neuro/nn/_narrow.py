"""Weights in bfloat16 and float16: stored narrow, computed with in float32.

A decay of 0.999 is 1 in bfloat16, and a memory of 4 does not change when 0.01 is added to it. Decays, gains, states and
what is added up over time are therefore float32 where the parameters are narrower; what a layer gives is as narrow as
they are, as torch's own layers have it.
"""

from __future__ import annotations

import torch
from torch import Tensor

NARROW = (torch.bfloat16, torch.float16)


def wide(tensor: Tensor) -> Tensor:
    """In float32 where it is narrower, else as it is.

    >>> wide(torch.zeros(2, dtype=torch.bfloat16)).dtype, wide(torch.zeros(2).double()).dtype
    (torch.float32, torch.float64)
    """
    return tensor.float() if tensor.dtype in NARROW else tensor


def state_dtype(like: Tensor) -> torch.dtype:
    """Dtype of the states of a layer with the parameter `like`."""
    return torch.float32 if like.dtype in NARROW else like.dtype


def as_stored(tensor: Tensor, like: Tensor) -> Tensor:
    """As narrow as the parameter `like` where that is narrow, else as it is."""
    return tensor.to(like.dtype) if like.dtype in NARROW else tensor
