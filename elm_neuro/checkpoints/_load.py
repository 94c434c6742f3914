"""Checkpoints of strangers, as ``torch.save`` writes them: looked at before anything of them is made.

``torch.load(weights_only=True)`` runs no code of a file, but believes its numbers: a record inflated from a thousandth
of its size, a storage larger than its record, which is read past its end, a tensor of a billion elements that all lie
in one place, a key whose hash takes for ever.
"""

from __future__ import annotations

import os
import pickletools
import reprlib
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, cast

import torch
from torch import Tensor

from elm_neuro.files import open_regular

DAMAGED = (zipfile.BadZipFile, struct.error, EOFError, OverflowError, UnicodeDecodeError, NotImplementedError)
MAX_HASHED = 1 << 16  # objects in one immutable one, shared ones counted each time: what a hash has to visit
MAX_RECORDS = 1 << 16
MAX_SHARED = 16  # tensors that share a storage: tied weights
REFUSED = ("builtins bytearray", "__builtin__ bytearray", "torch Tensor")  # made of a number: as large as it says
_shown = reprlib.Repr()
_shown.maxlevel, _shown.maxother, _shown.maxstring = 2, 60, 60


def shown(value: object) -> str:
    """A stranger's value in a message: its beginning, however large it is.

    >>> shown(["w" * 1000] * 1000)[-5:]
    '...]'
    """
    return _shown.repr(value)


def load_weights(path: str | os.PathLike[str]) -> Any:
    """What ``torch.load(weights_only=True)`` reads from a file, on the CPU, with sizes that the file can hold.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or holds more than weights and plain values; the message goes on after its name.
    """
    with open_regular(path) as file:
        content = file.read()
    try:
        records = _records(content)
        names = [name for name in records if name.rpartition("/")[2] == "data.pkl"]
        if len(names) != 1:
            raise ValueError("must hold one data.pkl, as torch.save writes it")
        name = names[0]
        folder = name.removesuffix("data.pkl")
        _check_pickle(records[name], {key.removeprefix(f"{folder}data/"): len(one) for key, one in records.items()})
    except DAMAGED as error:
        raise ValueError(f"must be a whole file of torch.save (since torch 1.6, a zip), got {error}") from error
    try:
        loaded = torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way; weights_only runs nothing of it
        raise ValueError("must hold weights and plain values, got what torch.load refuses (weights_only)") from error
    total = 0
    for tensor in tensors_in(loaded):
        total += _bytes_of(tensor)
    if total > MAX_SHARED * len(content):
        raise ValueError(f"must hold its tensors, got {total} bytes of them in {len(content)}")
    return loaded


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors in nested dicts, lists and tuples, each object once."""
    pending, seen = [value], set[int]()
    while pending:
        one = pending.pop()
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, dict | list | tuple | set) and id(one) not in seen:
            seen.add(id(one))
            pending += [*one, *one.values()] if isinstance(one, dict) else list(one)


def _records(content: bytes) -> dict[str, bytes]:
    """The records of a zip that compresses none, so that they take no more room than the file."""
    with zipfile.ZipFile(BytesIO(content)) as archive:
        entries = archive.infolist()
        if len(entries) > MAX_RECORDS or sum(entry.file_size for entry in entries) > len(content):
            raise ValueError(f"must hold records no larger than its {len(content)} bytes, got larger ones")
        if len({entry.filename for entry in entries}) < len(entries):
            raise ValueError("must hold each record once, got some twice")
        if any(entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 for entry in entries):
            raise ValueError("must hold records as they are, got compressed ones")
        return {entry.filename: archive.read(entry) for entry in entries}


@dataclass(eq=False)
class _Value:
    """What an instruction of the pickle leaves on the stack."""

    size: int = 1  # objects in it, while it cannot change any more
    content: Any = None  # of numbers, texts and names of globals, and tuples of them
    parts: list[_Value] = field(default_factory=list)  # of a tuple


_MARK = _Value()
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_FILLS = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
_FILLS_FROM_MARK = ("APPENDS", "SETITEMS", "ADDITEMS")
_ITEM_SIZES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
    "ComplexDouble": 16, "ComplexFloat": 8, "Untyped": 1,
}  # fmt: skip


def _check_pickle(pickled: bytes, sizes: dict[str, int]) -> None:
    """Follow the instructions without making what they say, and refuse what would take more than the file has.

    Args:
        pickled: the instructions.
        sizes: bytes of each record by its key.
    """
    stack: list[_Value] = []
    memo: dict[int, _Value] = {}
    try:
        for code, found, _ in pickletools.genops(pickled):
            name, argument = code.name, cast(Any, found)
            if name in ("PROTO", "FRAME", "STOP"):
                continue
            if name == "MARK":
                stack.append(_MARK)
            elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
                memo[int(argument)] = stack[-1]
            elif name == "MEMOIZE":
                memo[len(memo)] = stack[-1]
            elif name in ("BINGET", "LONG_BINGET", "GET"):
                stack.append(memo[int(argument)])
            elif name == "TUPLE":
                stack.append(_tuple(_from_mark(stack)))
            elif name in _TUPLES:
                stack.append(_tuple([stack.pop() for _ in range(_TUPLES[name])][::-1]))
            elif name == "BINPERSID":
                _check_storage(stack.pop(), sizes)
                stack.append(_Value())
            elif name in _FILLS:
                for _ in range(_FILLS[name]):
                    stack.pop()
            elif name in _FILLS_FROM_MARK:
                _from_mark(stack)
            elif name in ("REDUCE", "NEWOBJ"):
                arguments, _ = stack.pop(), stack.pop()
                stack.append(_Value(arguments.size + 1))
            elif name == "GLOBAL" and argument in REFUSED:
                raise ValueError(f"must hold weights and plain values, got {argument}")
            elif name == "GLOBAL" or not code.stack_before:  # a name, a number, a text, an empty container
                stack.append(_Value(content=argument))
            else:
                raise ValueError(f"must hold weights and plain values, got the instruction {name}")
    except (IndexError, KeyError, AttributeError) as error:
        raise ValueError("must hold a whole data.pkl, got one whose instructions do not fit") from error


def _from_mark(stack: list[_Value]) -> list[_Value]:
    """What lies above the last mark, taken off with it."""
    parts: list[_Value] = []
    while (one := stack.pop()) is not _MARK:
        parts.append(one)
    return parts[::-1]


def _tuple(parts: list[_Value]) -> _Value:
    size = 1 + sum(part.size for part in parts)
    if size > MAX_HASHED:
        raise ValueError(f"must hold no tuple of more than {MAX_HASHED} objects, got one")
    return _Value(size, parts=parts)


def _check_storage(value: _Value, sizes: dict[str, int]) -> None:
    """Refuse a storage that is not as large as its record: torch would read past the record's end."""
    _, kind, key, _, count = (part.content for part in value.parts) if len(value.parts) == 5 else (None,) * 5
    item = _ITEM_SIZES.get(str(kind).rpartition(" ")[2].removesuffix("Storage"))
    if item is None or not isinstance(count, int) or sizes.get(str(key)) != item * count:
        record = f"a record of {sizes[str(key)]} bytes" if str(key) in sizes else "none"
        raise ValueError(f"must hold a record for each storage, got {record} for {shown(count)} of {shown(kind)}")


def _bytes_of(tensor: Tensor) -> int:
    """The size of a tensor, which is refused where it has more elements than its storage."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        return 0
    size, there = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
    if size > there:
        raise ValueError(f"must hold each tensor whole, got {tuple(tensor.shape)} over {there} bytes")
    return size
