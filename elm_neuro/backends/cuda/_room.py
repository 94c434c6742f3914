"""What is handed from one kernel to the next lies in one buffer: an allocation takes the host as long as a launch."""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

ALIGNMENT = 256  # bytes

P = TypeVar("P", bound=NamedTuple)


class Room(Generic[P]):
    """Where the parts of a buffer lie.

    Args:
        parts: numbers of each part, a named tuple; 0 for a part that is not there.
        itemsize: bytes of a number.

    Attributes:
        numbers: of the whole buffer.

    >>> class Parts(NamedTuple):
    ...     memory: int
    ...     hidden: int
    ...     sums: int
    >>> room = Room(Parts(3, 0, 70), itemsize=4)
    >>> room.at(1000), room.numbers
    (Parts(memory=1000, hidden=0, sums=1256), 192)
    """

    def __init__(self, parts: P, itemsize: int) -> None:
        self._parts, self._make = parts, type(parts)._make
        whole = ALIGNMENT // itemsize
        self.numbers = 0
        self._begin: list[int | None] = []  # in bytes
        for numbers in parts:
            self._begin.append(self.numbers * itemsize if numbers else None)
            self.numbers += -(-numbers // whole) * whole
        self._itemsize = itemsize

    def at(self, buffer: int) -> P:
        """Addresses of the parts where that of the buffer is `buffer`; 0 for those that are not there."""
        return self._make([0 if begin is None else buffer + begin for begin in self._begin])

    def part(self, buffer: Tensor, name: str, *shape: int) -> Tensor:
        """A part as a tensor, for what is not a kernel of ours."""
        index = self._parts._fields.index(name)
        begin = self._begin[index]
        if begin is None:
            raise RuntimeError(f"there is no {name} in this buffer")
        return buffer.narrow(0, begin // self._itemsize, self._parts[index]).view(shape)
