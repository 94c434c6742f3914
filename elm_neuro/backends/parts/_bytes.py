"""Frames whose entries are bytes: spike counts, which take a quarter of the memory of float32."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor

BYTES = (torch.uint8, torch.int8)


def holds_bytes(x: Any) -> TypeGuard[Tensor]:
    """Whether `x` is a tensor of bytes.

    >>> holds_bytes(torch.zeros(2, dtype=torch.int8)), holds_bytes(torch.zeros(2, dtype=torch.int32))
    (True, False)
    """
    return isinstance(x, Tensor) and x.dtype in BYTES
