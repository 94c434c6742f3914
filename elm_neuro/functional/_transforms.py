"""What looks into every operation of torch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.autograd import forward_ad


def transformed() -> bool:
    """Whether torch.func's transforms or forward-mode differentiation are at work: in compiled code, where it was
    compiled.
    """
    return bool(torch._C._are_functorch_transforms_active()) or forward_ad._current_level >= 0


def batched(tensors: Iterable[Tensor | None]) -> bool:
    """Whether vmap has put some of these gradients side by side, as ``torch.autograd.grad(..., is_grads_batched=True)``
    does: only operators of torch may go on with them, and none that writes into one that is not batched.
    """
    if torch.compiler.is_compiling():
        return False
    of = torch._C._functorch
    return any(
        tensor is not None and (of.is_legacy_batchedtensor(tensor) or of.is_batchedtensor(tensor)) for tensor in tensors
    )


transformed._dynamo_marked_constant = True  # type: ignore[attr-defined]  # a result that torch.compile keeps
