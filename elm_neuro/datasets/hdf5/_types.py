"""Shapes, types and filters as the headers of HDF5 objects describe them."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from elm_neuro.datasets.hdf5._objects import SMALL, Fields

# of IEEE floats, by size: the sign's bit; then precision, place and size of exponent and mantissa, exponent's bias
FLOATS = {
    2: (15, (0, 16, 10, 5, 0, 10, 15)),
    4: (31, (0, 32, 23, 8, 0, 23, 127)),
    8: (63, (0, 64, 52, 11, 0, 52, 1023)),
}
REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("index", "<u4")])  # of a row in a global heap


class VariableLength(NamedTuple):
    """The type of rows of any length, or of text."""

    base: np.dtype[Any]
    is_text: bool

    @property
    def itemsize(self) -> int:
        """Bytes of a reference to a row."""
        return REFERENCE.itemsize


Type: TypeAlias = np.dtype[Any] | VariableLength


def shape_of(fields: Fields) -> tuple[int, ...] | None:
    """Sizes of the dimensions; None where there are no elements at all, as in an attribute that is empty."""
    version, rank, flags = fields.version(1, 2), fields.number(1), fields.number(1)
    kind = fields.number(1)
    fields.take(4 if version == 1 else 0)
    if version == 2 and kind == 2:
        return None
    if rank > 32 or flags > 3:
        raise ValueError(f"a shape must have at most 32 dimensions, got {rank}")
    return tuple(fields.number(8) for _ in range(rank))


def type_of(fields: Fields) -> Type:
    """The type of numbers, text and rows; ``V`` for all others."""
    start = fields.number(1)
    kind, bits, size = start & 15, fields.number(3), fields.number(4)
    order = "<>"[bits & 1]
    if kind == 0 and size in (1, 2, 4, 8):
        if fields.take(4) != (8 * size << 16).to_bytes(4, "little"):
            raise ValueError("integers must fill their bytes")
        return np.dtype(f"{order}{'i' if bits & 8 else 'u'}{size}")
    if kind == 1 and size in FLOATS:
        sign, parts = FLOATS[size]
        came = (*(fields.number(2) for _ in range(2)), *(fields.number(1) for _ in range(4)), fields.number(4))
        if came != parts or bits >> 8 != sign or bits & 0x70 != 0x20:
            raise ValueError(f"floats of {size} bytes must be those of IEEE 754, got {came}")
        return np.dtype(f"{order}f{size}")
    if kind == 3 and 0 < size < SMALL:
        return np.dtype(f"S{size}")
    if kind == 9 and size == REFERENCE.itemsize:
        base, is_text = type_of(fields), bool(bits & 15)
        if (bits & 15) > 1 or bits >> (12 if is_text else 4):
            raise ValueError(f"rows of variable length must be a sequence or text, got {bits:#x}")
        if isinstance(base, np.dtype):
            return VariableLength(base, is_text)
    return np.dtype("V")


def fill_of(fields: Fields, *, old: bool) -> bytes:
    """One element of what was never written, from the old or the new kind of message; empty for zero."""
    has_value = True
    if not old:
        version = fields.version(1, 2, 3)
        fields.take(2 if version < 3 else 0)
        state = fields.number(1)
        has_value = version == 1 or (state & 0x20 if version == 3 else state) > 0
    return fields.take(fields.number(4)) if has_value else b""


def filters_of(fields: Fields) -> list[int]:
    """Codes of the filters that a data set went through before it was stored, in that order."""
    version, num = fields.version(1, 2), fields.number(1)
    fields.take(6 if version == 1 else 0)
    codes = []
    for _ in range(num):
        code = fields.number(2)
        name = fields.number(2) if version == 1 or code >= 256 else 0
        fields.take(2)
        values = fields.number(2)
        fields.take(
            ((name + 7) // 8 * 8 if version == 1 else name) + 4 * (values + (values % 2 if version == 1 else 0))
        )
        codes.append(code)
    return codes
