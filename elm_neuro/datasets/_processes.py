"""What the processes of a data set share: a number that all of them see move, files that each maps into memory, and
workers that end with the process that started them.
"""

from __future__ import annotations

import mmap
import multiprocessing
import multiprocessing.connection
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray


class SharedNumber:
    """An integer, 0 at first, in memory that workers share: those that live on see it move.

    A copy has a number of its own, which its workers share; a process that is spawned shares that of its parent.

    >>> number = SharedNumber()
    >>> number.set(3)
    >>> int(number)
    3
    """

    def __init__(self) -> None:
        self._value = torch.zeros((), dtype=torch.int64, device="cpu").share_memory_()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._value = state["_value"].share_memory_()  # of a copy; what a spawned process is sent is shared already

    def __int__(self) -> int:
        return int(self._value)

    def set(self, value: int) -> None:
        """Have all processes see `value`."""
        self._value.fill_(value)


class MappedArray(NamedTuple):
    """Where the numbers of an array lie in a file: sent to a worker in their place."""

    path: str
    offset: int  # bytes
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def open(self) -> NDArray[Any]:
        """The array, mapped into memory, read-only.

        Raises:
            OSError: the file cannot be read.
        """
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


def without_maps(state: Mapping[str, Any]) -> dict[str, Any]:
    """What an object holds, for its ``__getstate__``: of arrays that are mapped read-only, or views of such, where they
    lie in their files.
    """
    return {name: _place_of(value) or value for name, value in state.items()}


def with_maps(state: Mapping[str, Any]) -> dict[str, Any]:
    """The same for its ``__setstate__``: mapped again.

    Raises:
        OSError: a file is not there any more.
    """
    return {name: value.open() if isinstance(value, MappedArray) else value for name, value in state.items()}


def _place_of(value: Any) -> MappedArray | None:
    """Where the numbers of an array lie in a file; None where they do not, or not one after the other."""
    whole = value
    while isinstance(whole, np.ndarray) and not isinstance(whole.base, mmap.mmap):
        whole = whole.base
    if not isinstance(whole, np.memmap) or whole.mode != "r" or whole.filename is None:
        return None
    if not value.size or not value.flags.c_contiguous or not os.path.isfile(whole.filename):
        return None
    offset = whole.offset + value.ctypes.data - whole.ctypes.data
    return MappedArray(os.fspath(whole.filename), offset, value.dtype, value.shape)


@contextmanager
def worker_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with this one, even by kill -9. Where the block fails, or Ctrl-C comes, they end at once, and
    what they were at is lost.
    """
    pool = ProcessPoolExecutor(num_workers, multiprocessing.get_context("spawn"), end_with_parent)
    try:
        yield pool
    except BaseException:
        for worker in list((pool._processes or {}).values()):  # Python 3.14 has kill_workers()
            worker.kill()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def end_with_parent() -> None:
    """Have a worker end when the process that started it does, even by kill -9."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        sentinel = parent.sentinel

        def watch() -> None:
            multiprocessing.connection.wait([sentinel])
            os._exit(1)

        threading.Thread(target=watch, daemon=True).start()
