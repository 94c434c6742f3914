"""Arguments of kernels: the structures of the CUDA C++ sources, of which every field has 64 bits."""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import TypeAlias

from torch import Tensor

Arguments: TypeAlias = bytes


def num_bytes(fields: str) -> int:
    """Size of a structure of these fields.

    >>> num_bytes("batch num_steps x")
    24
    """
    return 8 * len(fields.split())


def structure(fields: str) -> tuple[Callable[..., Arguments], int]:
    """What fills a structure of these fields, in order, and its size in bytes.

    >>> fill, size = structure("batch num_steps x")
    >>> Struct("3q").unpack(fill(2, 3, None)), size
    ((2, 3, 0), 24)
    """
    kind = Struct(f"{len(fields.split())}q")
    pack = kind.pack

    def fill(*values: int | Tensor | None) -> Arguments:
        # bytes take half the time of an array of ctypes, and asking for the class of ints less than for that of
        # tensors: this runs at each launch
        return pack(*[v if type(v) is int else 0 if v is None else v.data_ptr() for v in values])  # type: ignore[union-attr]

    return fill, kind.size
