"""Tensors whose memory a kernel may read, and those that only torch's own operators may touch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from elm_neuro.functional._transforms import transformed

FUNCTORCH: Any = torch._C._functorch
PLAIN = (Tensor, torch.nn.Parameter)
PLAIN_OR_NONE = frozenset((*PLAIN, type(None)))
TRACING_MODES = tuple(torch._C._TorchDispatchModeKey.__members__.values())  # fake tensors, make_fx, functionalisation


def only_operators(tensors: Iterable[Tensor | None]) -> str | None:
    """Why nobody but torch's operators may look at these tensors; None where they are numbers in memory.

    >>> only_operators([torch.zeros(2), None]) is None
    True
    """
    if torch.compiler.is_compiling():  # the kernels are operators there
        return None
    if torch._C._get_tracing_state() is not None:
        return "torch.jit.trace sees torch's operators only"
    if transformed():
        return "a transform of torch.func, or forward mode, sees torch's operators only"
    if torch._C._len_torch_dispatch_stack() and any(map(torch._C._get_dispatch_mode, TRACING_MODES)):
        return "a tracer is active, which sees torch's operators only"
    tensors = tuple(tensors)
    if PLAIN_OR_NONE.issuperset(map(type, tensors)):
        return None
    for tensor in tensors:
        if type(tensor) not in PLAIN and tensor is not None and _dispatches(tensor):
            return f"it reads the memory of plain tensors, got {type(tensor).__name__}"
    return None


def not_numbers(tensors: Sequence[Tensor | None]) -> str | None:
    """Why no kernel may run on these tensors, the input first: :func:`only_operators`, or there is nothing in them."""
    reason = only_operators(tensors)
    if reason is None and tensors[0] is not None and tensors[0].is_meta:
        return "tensors on meta have no numbers"
    return reason


def may_look(tensor: Tensor) -> bool:
    """Whether a check may read numbers of it: not where that waits for a device, nor where there are none, as inside
    compiled code, tracers, the transforms of torch.func and tensors that stand for others.
    """
    if torch.compiler.is_compiling() or not tensor.is_cpu or type(tensor) not in PLAIN:
        return False
    return only_operators(()) is None


def stand_for_others(tensors: Sequence[Tensor]) -> bool:
    """Whether some of these are not the numbers in memory that :func:`resolved` makes of them."""
    return any(map(Tensor.is_neg, tensors)) or any(map(FUNCTORCH.is_dead_tensor_wrapper, tensors))


def resolved(tensor: Any) -> Any:
    """A view that stands for the negative of what lies in memory, as ``z.conj().imag`` does, as numbers of its own, and
    what is left of one of torch.func's transforms that is over as the numbers it holds; anything else as it is.
    """
    if not isinstance(tensor, Tensor):
        return tensor
    if not torch.compiler.is_compiling():
        tensor = FUNCTORCH.unwrap_if_dead(tensor)
    return tensor.resolve_neg() if tensor.is_neg() else tensor


def _dispatches(tensor: Tensor) -> bool:
    """Whether a subclass stands for numbers that lie elsewhere, or nowhere."""
    kind: Any = type(tensor)
    return kind.__torch_dispatch__ is not Tensor.__torch_dispatch__
