"""Pickles of strangers that hold dicts, lists, numbers and numpy arrays, and nothing that could run code.

NeuronIO's files were pickled by Python 2 and store every spike time as a numpy scalar of 31 bytes: 10 million objects a
file. Three steps make them quick and harmless. Runs of such scalars are put together as they are read, into one scalar
call with all their bytes. What is left is looked through instruction by instruction before any of it is executed: only
those that build data are let through, sizes and nesting are bounded, places in the memo are numbered anew, and long
arrays that nobody asked for are left out. Then Python's own unpickler runs it, with stand-ins in place of the four
numpy functions that it may name.
"""

from __future__ import annotations

import bisect
import io
import math
import pickle
import pickletools
import re
import struct
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

MAX_BYTES = 4 << 30  # a file of 128 simulations has 0.4 GB
MAX_DEPTH = 100  # containers closed one right after the other
MAX_TUPLES = (
    1000  # tuples that a tuple is made of, however deep: Python's hash of one has no limit of its own, in depth or time
)
MAX_STACK = 10_000  # items above a mark: picklers put a thousand in a batch
BLOCK = 8 << 20  # bytes read at a time
LONGEST_NAME = 1 << 12  # of a module or function
PIECE = 1 << 14  # and looked through: what a name or a scalar taken from the memo may have copied
MAX_ARRAY = 64 << 20  # bytes; the voltages of all dendrites of a simulation have 8 MB
LONG = 1 << 10  # arrays of more bytes are left out unless their key is wanted

# Instructions that build data, and the two that call one of our stand-ins.
ALLOWED = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT EMPTY_LIST EMPTY_DICT "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "APPEND APPENDS SETITEM SETITEMS SHORT_BINSTRING BINSTRING BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES "
    "BINPUT LONG_BINPUT MEMOIZE BINGET LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD".split()
)
CLOSING = frozenset("TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS REDUCE BUILD".split())
STRINGS = frozenset("SHORT_BINSTRING BINSTRING BINUNICODE SHORT_BINUNICODE".split())
PAYLOADS = frozenset("BINSTRING BINBYTES".split())
TUPLES = frozenset("TUPLE TUPLE1 TUPLE2 TUPLE3".split())
CHANGES = frozenset("APPEND APPENDS SETITEM SETITEMS BUILD".split())  # of an object that stays where it is
PUTS = frozenset("BINPUT LONG_BINPUT MEMOIZE".split())
GETS = frozenset("BINGET LONG_BINGET".split())

# One scalar: the function and its type from the memo, 8 bytes, a tuple of the two, the call; each of the three results
# goes to the memo.
_SCALAR = rb"U\x08.{8}r.{4}\x86r.{4}Rr.{4}"
_RUN = re.compile(rb"((?:h.|j.{4})(?:h.|j.{4}))" + _SCALAR + rb"(?:\1" + _SCALAR + rb")*", re.DOTALL)
_SCALAR_BYTES = 27
_LONGEST_SCALAR = _SCALAR_BYTES + 10
_PARTS = {
    "raw": ("V8", 2),
    "first": ("<u4", 11),
    "second": ("<u4", 17),
    "third": ("<u4", 23),
}  # of _SCALAR: places in the memo
_ITEMS = {
    head: np.dtype(
        {
            "names": [*_PARTS],
            "formats": [kind for kind, _ in _PARTS.values()],
            "offsets": [head + at for _, at in _PARTS.values()],
            "itemsize": head + _SCALAR_BYTES,
        }
    )
    for head in (4, 7, 10)
}


class _Type:
    """In place of ``numpy.dtype``: plain numbers of at most 8 bytes, nothing with fields."""

    def __init__(self, code: Any, align: Any = False, copy: Any = False) -> None:
        if isinstance(code, bytes):
            code = code.decode("latin1")
        if not (isinstance(code, str) and re.fullmatch(r"b1|[iu][1248]|f[248]", code)):
            got = repr(code[:20]) if isinstance(code, str) else type(code).__name__
            raise pickle.UnpicklingError(f"numpy types must be plain numbers of at most 8 bytes, got {got}")
        self.dtype: np.dtype[Any] = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if not (
            isinstance(state, tuple)
            and len(state) >= 5
            and state[1] in ("<", ">", "|", "=")
            and state[2:5] == (None, None, None)
        ):
            raise pickle.UnpicklingError("numpy types must be plain numbers, got one with fields")
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """In place of ``numpy.ndarray``: `values` are None where the array was left out."""

    values: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        if not (
            isinstance(state, tuple) and len(state) == 5 and isinstance(state[1], tuple) and isinstance(state[2], _Type)
        ):
            raise pickle.UnpicklingError("numpy arrays must hold a shape, a type and bytes, got something else")
        _, shape, kind, fortran, raw = state
        raw = _raw(raw)
        if not all(isinstance(size, int) and 0 <= size for size in shape) or len(shape) > 4:
            raise pickle.UnpicklingError("numpy arrays must have at most four sizes, not negative")
        if raw == b"" and math.prod(shape):
            return
        if len(raw) != math.prod(shape) * kind.dtype.itemsize:
            raise pickle.UnpicklingError(
                f"numpy arrays must have as many bytes as their shape needs, got {len(raw)} for {shape}"
            )
        self.values = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if fortran else "C")


def _array(kind: Any = None, shape: Any = None, code: Any = None) -> _Array:
    if kind is not _Array or shape != (0,):
        raise pickle.UnpicklingError("numpy arrays must be made empty and then filled")
    return _Array()


def _scalar(kind: Any = None, raw: Any = None) -> Any:
    """One number, or the array of those that were put together."""
    if not isinstance(kind, _Type):
        raise pickle.UnpicklingError("numpy scalars must have a numpy type")
    raw = _raw(raw)
    if not raw or len(raw) % kind.dtype.itemsize:
        raise pickle.UnpicklingError(
            f"numpy scalars of {kind.dtype} must have {kind.dtype.itemsize} bytes, got {len(raw)}"
        )
    values = np.frombuffer(raw, kind.dtype)
    return values[0].item() if values.size == 1 else values


def _raw(raw: Any) -> bytes:
    if isinstance(raw, str):  # Python 2 had one type for both
        return raw.encode("latin1")
    if not isinstance(raw, bytes):
        raise pickle.UnpicklingError(f"numbers must be stored as bytes, got {type(raw).__name__}")
    return raw


STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {("numpy", "dtype"): _Type, ("numpy", "ndarray"): _Array} | {
    (module, name): function
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name, function in (("scalar", _scalar), ("_reconstruct", _array))
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            raise pickle.UnpicklingError(
                f"only numpy's scalar, _reconstruct, dtype and ndarray may be named, got {module}.{name}"
            )
        return STAND_INS[module, name]


def load(file: BinaryIO, size: int, *, wanted: Collection[str]) -> Any:
    """What a pickle holds; numpy's types as numbers and :class:`_Array`, numbers of a list that follow each other as
    one array in it.

    Args:
        file: opened for reading bytes, at its start.
        size: of the file in bytes.
        wanted: keys of long arrays to keep.

    Raises:
        pickle.UnpicklingError: the pickle names or does anything but building numbers, strings, tuples, lists, dicts
        and numpy arrays.
        ValueError: it is cut short or larger than 4 GiB.
    """
    if size > MAX_BYTES:
        raise pickle.UnpicklingError(f"a file must have at most {MAX_BYTES} bytes, got {size}")
    if size == 0:
        raise pickle.UnpicklingError("the file is empty")
    runs = _Runs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python, on a damaged name with a backslash
        checked = b"".join(_checked(_Joined(runs.compact(file)), runs, frozenset(wanted)))
    # S301: nothing but the stand-ins can be named
    return _Unpickler(io.BytesIO(checked), encoding="latin1").load()


class _Runs:
    """Scalars put together, and where they were in the memo."""

    def __init__(self) -> None:
        self._first: list[int] = []  # rising
        self._items: list[tuple[bytes, bytes]] = []  # where function and type are, the bytes of all

    def compact(self, file: BinaryIO) -> Iterator[bytes]:
        """The file with each run of scalars as one."""
        rest = b""
        while block := file.read(BLOCK):
            block, end = rest + block, 0
            for found in _RUN.finditer(block):
                yield block[end : found.start()]
                yield self._together(found[0], found[1])
                end = found.end()
            keep = max(end, len(block) - _LONGEST_SCALAR)
            yield block[end:keep]
            rest = block[keep:]
        yield rest

    def _together(self, run: bytes, head: bytes) -> bytes:
        items = np.frombuffer(run, _ITEMS[len(head)])
        first = items["first"]
        place = int(first[0])
        if (
            (first != place + 3 * np.arange(first.size)).any()
            or (items["second"] != first + 1).any()
            or (items["third"] != first + 2).any()
        ):
            return run  # not what a pickler writes: taken one by one
        raw = items["raw"].tobytes()
        if self._first and place <= self._first[-1]:
            self._first.clear()
            self._items.clear()
        self._first.append(place)
        self._items.append((head, raw))
        return _call(head, raw)

    def find(self, place: int) -> bytes | None:
        """Instructions that make the scalar at `place` of the memo once more; None where there is none."""
        at = bisect.bisect_right(self._first, place) - 1
        if at < 0:
            return None
        item, kind = divmod(place - self._first[at], 3)
        head, raw = self._items[at]
        return _call(head, raw[8 * item : 8 * item + 8]) if kind == 2 and 8 * item < len(raw) else None


def _call(head: bytes, raw: bytes) -> bytes:
    return head + b"B" + struct.pack("<I", len(raw)) + raw + b"\x86R"


class _Joined:
    """Pieces of bytes as a file, which remembers what was read since it was last asked."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = (piece[at : at + PIECE] for piece in pieces for at in range(0, len(piece), PIECE))
        self._buffer, self._at, self._mark = b"", 0, 0

    def _need(self, num: int) -> None:
        if num > MAX_ARRAY:
            raise pickle.UnpicklingError(f"arrays must have at most {MAX_ARRAY} bytes, got {num}")
        parts = [self._buffer[self._mark :]]
        self._at, self._mark, have = self._at - self._mark, 0, len(parts[0])
        for piece in self._pieces:
            parts.append(piece)
            have += len(piece)
            if have >= self._at + max(num, PIECE):
                break
        self._buffer = b"".join(parts)

    def read(self, num: int) -> bytes:
        if self._at + num > len(self._buffer):
            self._need(num)
        found = self._buffer[self._at : self._at + num]
        self._at += len(found)
        return found

    def readline(self) -> bytes:
        """A line of the only instruction with text that is allowed: those of others are not even looked at."""
        instruction = self._buffer[self._mark : self._mark + 1].decode("latin1")
        if instruction != pickle.GLOBAL.decode():
            name = next(opcode.name for opcode in pickletools.opcodes if opcode.code == instruction)
            raise pickle.UnpicklingError(f"a file of data must not hold the instruction {name}")
        end = self._buffer.find(b"\n", self._at, self._at + LONGEST_NAME)
        if end < 0:
            self._need(LONGEST_NAME)
            end = self._buffer.find(b"\n", self._at, self._at + LONGEST_NAME)
        return self.read(end + 1 - self._at) if end >= 0 else b""

    def push(self, instructions: bytes) -> None:
        """Have these read next."""
        self._buffer, self._at, self._mark = instructions + self._buffer[self._at :], 0, 0

    def taken(self) -> bytes:
        found = self._buffer[self._mark : self._at]
        self._mark = self._at
        return found


def _checked(source: _Joined, runs: _Runs, wanted: frozenset[str]) -> Iterator[bytes]:
    """The instructions of a pickle, each allowed, memo places counted from 0, long arrays that nobody wants without
    their bytes.
    """
    places: dict[int, int] = {}
    names: dict[int, str] = {}
    stacks: list[list[int]] = [
        []
    ]  # above each open mark, for every item the number of tuples that it is made of, 0 if it is none
    tuples: dict[int, int] = {}  # the same for places in the memo
    closed, key, last = 0, "", ""
    argument: Any
    for opcode, argument, _ in pickletools.genops(source):  # type: ignore[arg-type]  # it needs no more than read and readline
        name, taken, before = opcode.name, source.taken(), opcode.stack_before
        if name not in ALLOWED:
            raise pickle.UnpicklingError(f"a file of data must not hold the instruction {name}")
        if name == "MARK":
            stacks.append([])
        elif name not in PUTS:
            parts = []
            if pickletools.markobject in before:
                parts = stacks.pop() if len(stacks) > 1 else []
                before = before[: before.index(pickletools.markobject)]
            stack = stacks[-1]
            if before:
                parts += stack[-len(before) :]
                del stack[-len(before) :]
            if opcode.stack_after:
                made_of = 1 + sum(parts) if name in TUPLES else tuples.get(int(argument), 0) if name in GETS else 0
                if name in CHANGES and len(parts) >= len(before):
                    made_of = parts[-len(before)]
                stack.append(made_of)
                if made_of > MAX_TUPLES:
                    raise pickle.UnpicklingError(f"tuples must be made of at most {MAX_TUPLES} tuples, got more")
        closed = closed + (name in CLOSING) if name in CLOSING or name in PUTS else 0
        if closed > MAX_DEPTH or len(stacks) > MAX_DEPTH or len(stacks[-1]) > MAX_STACK:
            raise pickle.UnpicklingError(f"containers must be nested at most {MAX_DEPTH} deep, got more")
        if name in PUTS:
            place = len(places) if name == "MEMOIZE" else int(argument)
            if last:
                names[place] = last
            tuples[place] = stacks[-1][-1] if stacks[-1] else 0
            yield b"r" + struct.pack("<I", places.setdefault(place, len(places)))
        elif name in GETS:
            if (place := int(argument)) in places:
                key = names.get(place, key)
                yield b"j" + struct.pack("<I", places[place])
            elif (again := runs.find(place)) is not None:
                stacks[-1].pop()
                source.push(again)
            else:
                raise pickle.UnpicklingError(f"memo place {place} is read before anything was put there")
        elif name in PAYLOADS and len(argument) > LONG and key not in wanted:
            yield b"U\x00"
        elif name != "FRAME":
            yield taken
        last = (
            argument if name in STRINGS and 8 < len(argument) < 64 else ""
        )  # shorter ones are numbers and numpy's types
        key = last or key
