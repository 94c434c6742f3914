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
        return kind(*[value.data_ptr() if isinstance(value, Tensor) else value or 0 for value in values])

    return fill, ctypes.sizeof(kind)
