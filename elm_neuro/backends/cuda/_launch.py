"""Launches that are settled beforehand, once for the sizes of a pass: a call hands over addresses and no more."""

from __future__ import annotations

from struct import pack

from torch import Tensor

from elm_neuro.backends.cuda._compile import Program
from elm_neuro.backends.cuda._driver import Queue, Run, Work


class Launch:
    """A kernel with its grid and the numbers that its structure begins with.

    Args:
        program: what the kernel is compiled from.
        kernel: its name.
        grid: blocks; where there are none, nothing runs.
        threads: of a block.
        num_bytes: of the structure, whose fields have 8 each.
        numbers: its first fields.
        shared_bytes: of a block's dynamic shared memory.

    Attributes:
        kernels: what has to be compiled for it: the program and the kernel's name, nothing where nothing runs.
    """

    def __init__(
        self,
        program: Program,
        kernel: str,
        grid: tuple[int, int],
        threads: int,
        num_bytes: int,
        numbers: tuple[int, ...],
        shared_bytes: int = 0,
    ) -> None:
        self.runs = min(grid) > 0
        self.kernels = [(program, kernel)] if self.runs else []
        begin, left = pack(f"{len(numbers)}q", *numbers), num_bytes // 8 - len(numbers)
        self._work = Work(program, kernel, grid, threads, shared_bytes, begin, left)
        self._prepared: dict[Queue, Run] = {}

    def on(self, queue: Queue) -> Run:
        """What runs it on a queue, with the rest of the structure: addresses, 0 for what is not there."""
        run = self._prepared.get(queue)
        if run is None:
            run = queue.prepared(self._work) if self.runs else nothing
            self._prepared[queue] = run
        return run

    def __call__(self, queue: Queue, *fields: int) -> None:
        """Run it, as :meth:`on` has it."""
        self.on(queue)(*fields)


def nothing(*fields: int) -> None:
    """What runs a kernel that has no blocks."""


def address(tensor: Tensor | None) -> int:
    """Where a tensor lies, 0 for none."""
    return 0 if tensor is None else tensor.data_ptr()
