"""What looks into every operation of torch."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether torch.func's transforms or forward-mode differentiation are at work: in compiled code, where it was
    compiled.
    """
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a result that torch.compile keeps
