"""An HDF5 file and its data sets: where they are, how they are stored, their content."""

from __future__ import annotations

import math
import zlib
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray

from elm_neuro.datasets.hdf5._heap import Heap, attribute_of
from elm_neuro.datasets.hdf5._objects import (
    DATASPACE,
    DATATYPE,
    EXTERNAL_FILES,
    FILL,
    FILTERS,
    LAYOUT,
    NOWHERE,
    OLD_FILL,
    REPACK,
    SMALL,
    Fields,
    Link,
    SoftLink,
    Source,
    leaves,
    links,
    messages,
    root_address,
)
from elm_neuro.datasets.hdf5._types import REFERENCE, VariableLength, fill_of, filters_of, shape_of, type_of

MAX_HOPS, MAX_STEPS = 8, 100  # soft links on the way to one object, and names in a path
DEFLATE, SHUFFLE = 1, 2
Header: TypeAlias = dict[int, list[bytes]]


class File:
    """An HDF5 file, opened for reading; it is read where it is asked for, from `stream`, which stays open.

    Args:
        stream: the file.
        follow: go where soft links inside the file lead, which are refused by default.
        small: bytes that a data set or chunk may have, however small the file is; others have no more than the file.
    """

    def __init__(self, stream: BinaryIO, *, follow: bool = False, small: int = SMALL) -> None:
        self.source, self._follow = Source(stream, small), follow
        self._heap = Heap(self.source)
        self._headers: dict[int, Header] = {}  # by their addresses, and links of groups
        self._links: dict[int, dict[str, Link] | None] = {}
        self._root = root_address(self.source)
        self._header(self._root)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self.source.size

    def keys(self, path: str = "") -> list[str]:
        """Names in a group, by default the root group; none where there is no such group."""
        address = self._find(path)
        return sorted((self._linked(address) or {}) if address is not None else {})

    def is_group(self, path: str) -> bool:
        """Whether there is a group of that path."""
        address = self._find(path)
        return address is not None and self._linked(address) is not None

    def attribute(self, name: str) -> int | str | None:
        """The attribute of the root group of that name, if it is a whole number or a text."""
        value = attribute_of(self._heap, self._header(self._root), name)
        return None if isinstance(value, float) else value

    def get(self, key: str) -> Dataset | None:
        """The data set of that path, None where there is nothing.

        Raises:
            ValueError: it is stored elsewhere, or is a group.
        """
        address = self._find(key)
        if address is None:
            return None
        if LAYOUT not in self._header(address):
            raise ValueError(f"/{key} must be a data set, got a Group")
        return Dataset(self._heap, key, address, self._header(address))

    def _header(self, address: int) -> Header:
        if address not in self._headers:
            self._headers[address] = messages(self.source, address)
        return self._headers[address]

    def _linked(self, address: int) -> dict[str, Link] | None:
        """Links of the group there, None for what is no group."""
        if address not in self._links:
            self._links[address] = links(self.source, self._header(address))
        return self._links[address]

    def _find(self, path: str) -> int | None:
        """Where the header of the object of that path stands, None where there is none."""
        address, here = self._root, ""
        parts, hops = [part for part in path.split("/") if part], 0
        while parts:
            part = parts.pop(0)
            link: Link | None = (self._linked(address) or {}).get(part)
            if link is None:
                return None
            if isinstance(link, str) or (isinstance(link, SoftLink) and not self._follow):
                kind = link if isinstance(link, str) else "SoftLink"
                raise ValueError(f"/{path} must be stored in the file itself, got a {kind}")
            if isinstance(link, int):
                address, here = link, f"{here}/{part}"
                continue
            if (hops := hops + 1) > MAX_HOPS:
                raise ValueError(f"/{path} must be reached by at most {MAX_HOPS} soft links")
            target = link.path if link.path.startswith("/") else f"{here}/{link.path}"
            parts = [step for step in target.split("/") if step] + parts
            if len(parts) > MAX_STEPS:
                raise ValueError(f"/{path} must be reached by at most {MAX_STEPS} names, got {len(parts)}")
            address, here = self._root, ""
        return address


class Dataset:
    """Shape, type and storage of a data set; its content is read by :meth:`values` and :meth:`rows`.

    Args:
        heap: of the file.
        key: the path that led here.
        address: where the header stands: the same for all paths to one data set.
        header: its messages.

    Raises:
        ValueError: it is stored in another file, is virtual, or its header is damaged.
    """

    def __init__(self, heap: Heap, key: str, address: int, header: Header) -> None:
        if header[EXTERNAL_FILES]:
            raise ValueError(f"/{key} must be stored in the file itself, got external storage")
        if not header[DATASPACE] or not header[DATATYPE]:
            raise ValueError(f"/{key} must have a shape and a type, got none")
        self._heap, self._source, self._header, self.key, self.address = heap, heap.source, header, key, address
        shape = shape_of(Fields(header[DATASPACE][0], "a shape"))
        if shape is None:
            raise ValueError(f"/{key} must have a shape, got nothing")
        self.shape = shape
        self.dtype = type_of(Fields(header[DATATYPE][0], "a type"))
        self._fill = self._fill_value()
        self._filters = filters_of(Fields(header[FILTERS][0], "filters")) if header[FILTERS] else []
        layout = Fields(header[LAYOUT][0], f"the storage of /{key}")
        self.chunk: int | None = None  # rows of a chunk
        self._chunk_shape: tuple[int, ...] = ()
        self._compact: bytes | None = None
        self._address = NOWHERE  # of the content, or of the index of chunks
        self._stored = 0
        version = layout.version(1, 2, 3, 4)
        if version < 3:
            num, kind = layout.number(1), layout.number(1)
            layout.take(5)
            self._address = layout.number(8) if kind else NOWHERE
            sizes = [layout.number(4) for _ in range(num)]
            self._compact = layout.take(layout.number(4)) if kind == 0 else None
            self._stored = math.prod(sizes) if kind == 1 else 0
        else:
            kind = layout.number(1)
            if kind == 0:
                self._compact = layout.take(layout.number(2))
            elif kind == 1:
                self._address, self._stored = layout.number(8), layout.number(8)
            elif kind == 2 and version == 3:
                num = layout.number(1)
                self._address = layout.number(8)
                sizes = [layout.number(4) for _ in range(num)]
        if kind == 3:
            raise ValueError(f"/{key} must be stored in the file itself, got a virtual data set")
        if kind > 3 or (kind == 2 and version == 4):
            raise ValueError(f"/{key} must be stored in one piece or in chunks that are listed plainly{REPACK}")
        if kind == 2:
            if len(sizes) != len(self.shape) + 1 or min(sizes) < 1 or sizes[-1] != self.dtype.itemsize:
                raise ValueError(f"/{key} must have chunks of its own shape and type, got {sizes}")
            self.chunk, self._chunk_shape = sizes[0], tuple(sizes[:-1])

    def attribute(self, name: str) -> float | int | str | None:
        """The attribute of that name, if it is one number or a text."""
        return attribute_of(self._heap, self._header, name)

    @property
    def offset(self) -> int | None:
        """Where the content begins in the file, where it stands there as it is and in one piece."""
        plain = self.chunk is None and self._compact is None and not self._filters and self._address != NOWHERE
        return self._address if plain else None

    def values(self) -> NDArray[Any]:
        """Numbers of a data set, in its shape.

        Raises:
            ValueError: they have more bytes than the file and what is small, are cut short, or are stored in a way
                that is not read.
        """
        if isinstance(self.dtype, VariableLength):
            raise ValueError(f"/{self.key} must hold plain numbers, got rows of variable length")
        if not self.dtype.itemsize:
            raise ValueError(f"/{self.key} must hold plain numbers or text, got another type, as of truths or records")
        return np.frombuffer(self._content(), self.dtype).reshape(self.shape)

    def rows(self) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """All rows of a data set of one dimension, one after another, and the length of each.

        Raises:
            ValueError: they claim more bytes than the file has, or are not where they are said to be.
        """
        if not isinstance(self.dtype, VariableLength):
            raise ValueError(f"/{self.key} must hold rows of variable length, got {self.dtype}")
        references = np.frombuffer(self._content(), REFERENCE)
        lengths = references["length"].astype(np.int64)
        itemsize = self.dtype.base.itemsize
        claimed = itemsize * int(lengths.sum())
        if claimed > self._source.size:
            raise ValueError(
                f"/{self.key} must hold no more than the file's {self._source.size} bytes, got rows that claim "
                f"{claimed}"
            )
        self._source.count(claimed)
        flat, end = bytearray(claimed), 0
        for length, address, index in references[lengths > 0].tolist():
            raw = self._heap.read(address, index)
            if len(raw) != length * itemsize:
                raise ValueError(f"/{self.key} must have rows of {length * itemsize} bytes, got {len(raw)}")
            flat[end : end + len(raw)] = raw
            end += len(raw)
        return np.frombuffer(flat, self.dtype.base), lengths

    @property
    def num_bytes(self) -> int:
        """What its numbers take in memory, or the references to its rows."""
        return math.prod(self.shape) * self.dtype.itemsize

    def _content(self) -> bytes | bytearray | NDArray[np.uint8]:
        """All elements as they lie in memory; what was never written has the fill value."""
        size = self.num_bytes
        if size > self._source.most:
            raise ValueError(f"/{self.key} must have no more bytes than the file, {self._source.size}, got {size}")
        self._source.count(size)
        if self._compact is not None:
            if len(self._compact) < size:
                raise ValueError(f"/{self.key} must have {size} bytes, got {len(self._compact)}")
            return self._compact[:size]
        if self.chunk is not None:
            return self._chunks()
        if self._address == NOWHERE or size == 0:
            return self._fill * math.prod(self.shape)
        if self._filters or self._stored < size:
            raise ValueError(f"/{self.key} must have {size} bytes in one piece, got {self._stored}")
        return self._source.read(self._address, size, f"/{self.key}")

    def _fill_value(self) -> bytes:
        """One element of what was never written."""
        itemsize, fill = self.dtype.itemsize, b""
        for kind in (OLD_FILL, FILL):  # the new one counts where there are both
            for raw in self._header[kind][:1]:
                fill = fill_of(Fields(raw, "a fill value"), old=kind == OLD_FILL)
        if fill and itemsize and len(fill) != itemsize:
            raise ValueError(f"/{self.key} must have a fill value of {itemsize} bytes, got {len(fill)}")
        return fill or bytes(itemsize)

    def _chunks(self) -> NDArray[np.uint8]:
        """The elements of all chunks, each as bytes in a last dimension."""
        chunk, itemsize = self._chunk_shape, self.dtype.itemsize
        length = math.prod(chunk) * itemsize
        if length > self._source.most:
            raise ValueError(f"/{self.key} must have chunks smaller than the file, got {length} bytes")
        content = np.empty((*self.shape, itemsize), np.uint8)
        content[...] = np.frombuffer(self._fill, np.uint8)
        seen = set()
        for key, address in leaves(self._source, self._address, kind=1, key_size=8 * (2 + len(chunk))):
            fields = Fields(key, "a chunk")
            stored, mask = fields.number(4), fields.number(4)
            first = tuple(fields.number(8) for _ in chunk)
            if first in seen or any(at % size for at, size in zip(first, chunk, strict=True)):
                raise ValueError(f"/{self.key} must have each chunk once, got one that begins at {first}")
            if any(at >= size for at, size in zip(first, self.shape, strict=True)):
                continue
            seen.add(first)
            place = content[tuple(slice(at, at + size) for at, size in zip(first, chunk, strict=True))]
            self._source.count(length - place.size)  # what lies beyond the shape is unpacked, too
            raw = self._plain(self._source.read(address, stored, f"a chunk of /{self.key}"), mask, length)
            block = np.frombuffer(raw, np.uint8).reshape(*chunk, itemsize)
            place[...] = block[tuple(slice(size) for size in place.shape)]
        return content

    def _plain(self, raw: bytes, mask: int, length: int) -> bytes:
        """A chunk of `length` bytes as it was before its filters."""
        for place, code in reversed(list(enumerate(self._filters))):
            if mask >> place & 1:
                continue
            if code == DEFLATE:
                try:
                    raw = zlib.decompressobj().decompress(raw, length)
                except zlib.error as error:
                    raise ValueError(f"/{self.key} must be packed by gzip: {error}") from error
            elif code == SHUFFLE and len(raw) == length:
                raw = np.frombuffer(raw, np.uint8).reshape(self.dtype.itemsize, -1).T.tobytes()
            elif code != SHUFFLE:
                raise ValueError(
                    f"/{self.key} must be stored plainly or with the filters gzip and shuffle, got filter {code}"
                )
        if len(raw) != length:
            raise ValueError(f"/{self.key} must have chunks of {length} bytes, got {len(raw)}")
        return raw
