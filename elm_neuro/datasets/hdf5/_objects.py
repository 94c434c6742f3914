"""What an HDF5 file is made of: superblock, object headers, groups, links. Every place and size is checked before it is
read, and what is read and unpacked is counted, so that no file can lead outside of itself, in a circle or without end.

Source: "HDF5 File Format Specification Version 3.0", The HDF Group. Read is what the library writes unless it is asked
for its newest format, and of that format what files as small as ours have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, TypeAlias

NOWHERE = 2**64 - 1  # the address of what is not stored
SMALL = 1 << 20  # bytes that a data set or chunk may have, however small the file is
MOST_TIMES = 64  # bytes that are read and unpacked for each of the file, or of what is small
REPACK = "; h5repack writes it anew in the older format that is read here"

# kinds of messages in an object's header
DATASPACE, LINK_INFO, DATATYPE, OLD_FILL, FILL, LINK, EXTERNAL_FILES = 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07
LAYOUT, GROUP_INFO, FILTERS, ATTRIBUTE, CONTINUATION, SYMBOL_TABLE = 0x08, 0x0A, 0x0B, 0x0C, 0x10, 0x11
SHARED = 2  # flag of a message that stands elsewhere

OTHER_LINKS = {1: "SoftLink", 64: "ExternalLink"}


class SoftLink(NamedTuple):
    """A link by path: from the root group where it begins with a slash, else from the group that it stands in."""

    path: str


Link: TypeAlias = int | str | SoftLink  # the address of an object, the kind of a link to elsewhere, or a path


class Fields:
    """Little-endian fields of a piece of a file, one after another."""

    def __init__(self, raw: bytes, what: str) -> None:
        self.raw, self.at, self._what = raw, 0, what

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if size > len(self.raw) - self.at:
            raise ValueError(f"{self._what} must have all of its fields, got {len(self.raw)} bytes")
        self.at += size
        return self.raw[self.at - size : self.at]

    def number(self, size: int) -> int:
        """The next `size` bytes as a number, not negative."""
        return int.from_bytes(self.take(size), "little")

    def version(self, *known: int) -> int:
        """The next byte, which must be one of the versions that are known."""
        version = self.number(1)
        if version not in known:
            raise ValueError(f"{self._what} must have a version of {list(known)}, got {version}{REPACK}")
        return version


class Source:
    """A file as bytes at places that are checked to lie within it.

    Args:
        stream: the file.
        small: bytes that a data set or chunk may have, however small the file is; others have no more than the file.
    """

    def __init__(self, stream: BinaryIO, small: int = SMALL) -> None:
        self._stream = stream
        self.size = stream.seek(0, 2)
        self.most = max(self.size, small)  # bytes of a data set or chunk
        self._left = MOST_TIMES * self.most

    def count(self, num: int) -> None:
        """Count bytes that are read or unpacked: pieces that many places share would make a small file endless."""
        self._left -= num
        if self._left < 0:
            raise ValueError(
                f"a file of {self.size} bytes must be read within {MOST_TIMES * self.most} bytes, got more: its parts "
                "are read many times, or unpack to too much"
            )

    def read(self, address: int, size: int, what: str, signature: bytes = b"") -> bytes:
        """`size` bytes at `address`, which begin with `signature`."""
        if size < 0 or address + size > self.size:
            raise ValueError(f"{what} must lie within the file's {self.size} bytes, got {size} at {address}")
        self.count(size)
        self._stream.seek(address)
        raw = self._stream.read(size)
        if len(raw) != size or not raw.startswith(signature):
            raise ValueError(f"{what} must begin with {signature!r}, got {raw[: len(signature)]!r} at {address}")
        return raw


def root_address(source: Source) -> int:
    """Where the header of the root group stands, by the superblock."""
    raw = source.read(0, min(source.size, 96), "an HDF5 file", b"\x89HDF\r\n\x1a\n")
    fields = Fields(raw, "the superblock")
    fields.take(8)
    version = fields.version(0, 1, 2, 3)
    fields.take(4 if version < 2 else 0)
    if fields.take(2) != b"\x08\x08":
        raise ValueError("addresses and sizes must have 8 bytes each")
    fields.take({0: 9, 1: 13}.get(version, 1))
    base, _, end = fields.number(8), fields.number(8), fields.number(8)
    if base != 0 or end > source.size:
        raise ValueError(f"the file must be whole and begin at 0, got {source.size} bytes of {end}, begun at {base}")
    fields.take(16 if version < 2 else 0)
    return fields.number(8)


def messages(source: Source, address: int) -> dict[int, list[bytes]]:
    """Messages of the object whose header stands at `address`, by kind."""
    found: dict[int, list[bytes]] = defaultdict(list)
    start = source.read(address, 16, "an object's header")
    new = start.startswith(b"OHDR")
    if new:
        flags = start[5]
        first = 6 + 16 * bool(flags & 0x20) + 4 * bool(flags & 0x10)
        size_bytes = 1 << (flags & 3)
        size = Fields(source.read(address + first, size_bytes, "an object's header"), "a header").number(size_bytes)
        blocks = [(address + first + size_bytes, size)]
    elif start[0] == 1:
        flags, blocks = 0, [(address + 16, int.from_bytes(start[8:12], "little"))]
    else:
        raise ValueError(f"an object's header must have version 1 or 2, got {start[0]}{REPACK}")
    num_bytes = 0
    seen = set()
    while blocks:
        place, size = blocks.pop()
        num_bytes += size
        if place in seen or num_bytes > source.size:
            raise ValueError("the parts of an object's header must not overlap")
        seen.add(place)
        for kind, raw in _messages_of(source.read(place, size, "a part of an object's header"), new, flags):
            if kind == CONTINUATION:
                fields = Fields(raw, "a continuation")
                more, length = fields.number(8), fields.number(8)
                if new:
                    source.read(more, 4, "a continuation", b"OCHK")
                    more, length = more + 4, length - 8  # between signature and checksum
                blocks.append((more, length))
            else:
                found[kind].append(raw)
    return found


def _messages_of(raw: bytes, new: bool, header_flags: int) -> Iterator[tuple[int, bytes]]:
    fields = Fields(raw, "a message")
    head = 4 + 2 * bool(header_flags & 4) if new else 8
    while len(raw) - fields.at >= head:
        kind, size, flags = fields.number(1 if new else 2), fields.number(2), fields.number(1)
        fields.take(head - (4 if new else 5))
        content = fields.take(size)
        if flags & SHARED and kind in (DATASPACE, DATATYPE, OLD_FILL, FILL, FILTERS, LAYOUT, ATTRIBUTE):
            raise ValueError(f"a message must stand in its own header, got one of kind {kind} that is shared{REPACK}")
        yield kind, content


def links(source: Source, header: dict[int, list[bytes]]) -> dict[str, Link] | None:
    """Links of a group by name; None for what is no group."""
    if SYMBOL_TABLE in header:
        return _old_links(source, Fields(header[SYMBOL_TABLE][0], "a symbol table"))
    if not any(kind in header for kind in (LINK_INFO, GROUP_INFO, LINK)):
        return None
    for raw in header[LINK_INFO]:
        fields = Fields(raw, "a group's index")
        fields.take(1)
        fields.take(8 * (fields.number(1) & 1))
        if fields.number(8) != NOWHERE:
            raise ValueError(f"a group must hold few links{REPACK}")
    return dict(_link(Fields(raw, "a link")) for raw in header[LINK])


def _link(fields: Fields) -> tuple[str, Link]:
    fields.version(1)
    flags = fields.number(1)
    kind = fields.number(1) if flags & 0x08 else 0
    fields.take(8 * bool(flags & 0x04) + bool(flags & 0x10))
    name = fields.take(fields.number(1 << (flags & 3))).decode("utf-8", "replace")
    if kind == 1:
        return name, SoftLink(fields.take(fields.number(2)).rstrip(b"\0").decode("utf-8", "replace"))
    return name, fields.number(8) if kind == 0 else OTHER_LINKS.get(kind, f"link of kind {kind}")


def _old_links(source: Source, table: Fields) -> dict[str, Link]:
    tree, heap = table.number(8), table.number(8)
    head = Fields(source.read(heap, 32, "a local heap", b"HEAP\0"), "a local heap")
    head.take(8)
    size, _, start = head.number(8), head.number(8), head.number(8)
    names = source.read(start, size, "a local heap")
    found: dict[str, Link] = {}
    for _, leaf in leaves(source, tree, kind=0, key_size=8):
        num = Fields(source.read(leaf, 8, "a group's leaf", b"SNOD\1")[6:], "a group's leaf").number(2)
        entries = Fields(source.read(leaf + 8, 40 * num, "a group's leaf"), "a group's leaf")
        for _ in range(num):
            place, address, cached = entries.number(8), entries.number(8), entries.number(4)
            entries.take(4)
            target = entries.number(4)
            entries.take(12)
            name = _text_in(names, place)
            found[name] = SoftLink(_text_in(names, target)) if cached == 2 else address
    return found


def _text_in(heap: bytes, place: int) -> str:
    """Text of a local heap that begins there."""
    end = heap.find(b"\0", place)
    if not 0 <= place < end:
        raise ValueError(f"names of links must lie in their heap, got one at {place}")
    return heap[place:end].decode("utf-8", "replace")


def leaves(source: Source, root: int, *, kind: int, key_size: int) -> Iterator[tuple[bytes, int]]:
    """(key, address) of each child of the lowest nodes of a version 1 B-tree: of groups (0) or of chunks (1)."""
    if root == NOWHERE:
        return
    seen: set[int] = set()
    todo: list[tuple[int, int | None]] = [(root, None)]
    while todo:
        address, expected = todo.pop()
        if address in seen:
            raise ValueError("the nodes of an index must not be used twice")
        seen.add(address)
        head = Fields(source.read(address, 24, "a node of an index", b"TREE"), "a node of an index")
        head.take(4)
        own, level, num = head.number(1), head.number(1), head.number(2)
        if own != kind or expected not in (None, level):
            raise ValueError(f"a node of an index must be of kind {kind} and level {expected}, got {own} and {level}")
        entries = Fields(source.read(address + 24, num * (key_size + 8), "a node of an index"), "a node of an index")
        for _ in range(num):
            key, child = entries.take(key_size), entries.number(8)
            if level:
                todo.append((child, level - 1))
            else:
                yield key, child
