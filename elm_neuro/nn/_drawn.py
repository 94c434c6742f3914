"""Weights drawn anew, in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def draw_anew(module: nn.Module, make: Callable[[], nn.Module]) -> None:
    """Give the parameters and buffers of `module` the numbers of a new one; pruned weights stay pruned.

    Raises:
        RuntimeError: a parameter is another's: a norm or a parametrization makes it.
    """
    with torch.device("cpu"):
        new = make()
    own: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers())
    with torch.no_grad():
        for name, numbers in (*new.named_parameters(), *new.named_buffers()):
            tensor = own.get(name, own.get(f"{name}_orig"))
            if tensor is None:
                raise RuntimeError(f"{name} must be a parameter to be drawn anew, got one that is made of others")
            tensor.copy_(_as_it_lies(numbers, tensor))


def _as_it_lies(numbers: Tensor, tensor: Any) -> Tensor:
    """The part of each process, where the numbers are in shards."""
    if not hasattr(tensor, "placements"):
        return numbers
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(numbers.to(tensor.device, tensor.dtype), tensor.device_mesh, tensor.placements)
