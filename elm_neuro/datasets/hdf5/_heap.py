"""Rows of variable length, and attributes: what HDF5 keeps beside the data sets."""

from __future__ import annotations

import math

import numpy as np

from elm_neuro.datasets.hdf5._objects import ATTRIBUTE, Fields, Source
from elm_neuro.datasets.hdf5._types import REFERENCE, VariableLength, shape_of, type_of


class Heap:
    """Rows of variable length of a file, in collections that are looked through once each."""

    def __init__(self, source: Source) -> None:
        self.source, self._walked = source, 0
        self._places: dict[int, dict[int, tuple[int, int]]] = {}

    def read(self, address: int, index: int) -> bytes:
        """Row `index` of the collection at `address`."""
        if address not in self._places:
            self._places[address] = self._walk(address)
        if index not in self._places[address]:
            raise ValueError(f"a heap must hold the row {index}, got none at {address}")
        place, size = self._places[address][index]
        return self.source.read(place, size, "a row")

    def _walk(self, address: int) -> dict[int, tuple[int, int]]:
        size = int.from_bytes(self.source.read(address, 16, "a heap", b"GCOL\1")[8:], "little")
        self._walked += size
        if self._walked > self.source.size:  # they do not overlap
            raise ValueError(f"heaps must have no more bytes than the file, {self.source.size}, got more")
        places: dict[int, tuple[int, int]] = {}
        at, end = address + 16, address + size
        while at + 16 <= end:
            head = self.source.read(at, 16, "a row")
            index, length = int.from_bytes(head[:2], "little"), int.from_bytes(head[8:], "little")
            if index == 0:  # what is free: the rest, this head included
                if at + length != end:
                    raise ValueError(f"what is free in a heap must be the rest of it, {end - at} bytes, got {length}")
                break
            if length > end - at - 16 or index in places:
                raise ValueError(f"a heap of {size} bytes must hold each row once, got row {index} of {length} bytes")
            places[index] = (at + 16, length)
            at += 16 + (length + 7) // 8 * 8
        return places


def attribute_of(heap: Heap, header: dict[int, list[bytes]], name: str) -> float | int | str | None:
    """The attribute of an object of that name; None where there is none.

    Raises:
        ValueError: it is neither one number nor a text.
    """
    for raw in header[ATTRIBUTE]:
        heap.source.count(len(raw))
        own, value = _attribute(heap, Fields(raw, "an attribute"), name)
        if own == name:
            if value is None:
                raise ValueError(f"the attribute {name} must be one number or a text, got another type or shape")
            return value
    return None


def _attribute(heap: Heap, fields: Fields, wanted: str) -> tuple[str, float | int | str | None]:
    """Name of an attribute, and its value where it is the one that is wanted and one number or a text."""
    version = fields.version(1, 2, 3)
    fields.take(1)
    sizes = [fields.number(2) for _ in range(3)]
    fields.take(1 if version == 3 else 0)
    parts = []
    for size in sizes:
        parts.append(fields.take(size))
        fields.take(-size % 8 if version == 1 else 0)
    name = parts[0].rstrip(b"\0").decode("utf-8", "replace")
    if name != wanted:
        return name, None
    dtype, shape = type_of(Fields(parts[1], "a type")), shape_of(Fields(parts[2], "a shape"))
    if shape is None or math.prod(shape) != 1:
        return name, None
    if isinstance(dtype, VariableLength):
        (length, address, index) = np.frombuffer(fields.take(dtype.itemsize), REFERENCE)[0].tolist()
        text = heap.read(address, index)[:length] if length else b""
        return name, text.decode("utf-8", "replace") if dtype.is_text else None
    raw = fields.take(dtype.itemsize)
    if dtype.kind == "S":
        return name, raw.rstrip(b"\0").decode("utf-8", "replace")
    if dtype.kind == "f":
        return name, float(np.frombuffer(raw, dtype)[0])
    return name, int(np.frombuffer(raw, dtype)[0]) if dtype.kind in "iu" else None
