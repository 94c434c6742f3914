"""Arguments of kernels: the structures of the CUDA C++ sources, 64-bit integers first, then addresses."""

from __future__ import annotations

import ctypes
from typing import Any

from torch import Tensor


def structure(name: str, numbers: str, pointers: str) -> type[ctypes.Structure]:
    """A structure of these fields, in order."""
    fields: list[tuple[str, Any]] = [(field, ctypes.c_int64) for field in numbers.split()]
    fields += [(field, ctypes.c_void_p) for field in pointers.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def addresses(*tensors: Tensor | None) -> list[int | None]:
    """Where the tensors lie; they must outlive the launch."""
    return [None if tensor is None else tensor.data_ptr() for tensor in tensors]
