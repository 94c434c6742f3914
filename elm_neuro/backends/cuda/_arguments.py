"""Arguments of kernels: the structures of the CUDA C++ sources, of which every field has 64 bits."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

Arguments: TypeAlias = "ctypes.Array[ctypes.c_int64]"


def structure(fields: str) -> tuple[Callable[..., Arguments], int]:
    """What fills a structure of these fields, in order, and its size in bytes.

    >>> fill, size = structure("batch num_steps x")
    >>> list(fill(2, 3, None)), size
    ([2, 3, 0], 24)
    """
    kind = ctypes.c_int64 * len(fields.split())

    def fill(*values: int | Tensor | None) -> Arguments:
        # asking for the class of ints is faster than for that of tensors: this runs at each launch
        return kind(*[v if type(v) is int else 0 if v is None else v.data_ptr() for v in values])  # type: ignore[union-attr]

    return fill, ctypes.sizeof(kind)
