"""How a batch comes from a worker process: as bytes through its pipe.

torch hands each tensor on as a file in shared memory, which is opened, mapped and touched for the first time, page by
page, for every batch: of five tensors of spikes that takes longer than training on them takes a GPU.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

MAX_BYTES = 2**20  # of a tensor; more is faster through shared memory
INTEGERS = (np.int8, np.int16, np.int32)


class Parcel:
    """A batch on its way. Numbers travel in the narrowest integers that hold them exactly; of large tensors that are
    mostly 0 only the rest travels.

    Args:
        batch: what is sent: any object that can be pickled; its tensors may lie in tuples, events, ....

    >>> Parcel((torch.tensor([1.0, 0.0]), "label")).batch()
    (tensor([1., 0.]), 'label')
    """

    def __init__(self, batch: Any) -> None:
        content, self._beside = io.BytesIO(), list[tuple[Tensor, torch.dtype]]()
        _Writer(content, self._beside).dump(batch)
        self._content = content.getvalue()

    def batch(self, *, pinned: bool = False) -> Any:
        """What was sent, bit for bit; with `pinned` its tensors lie where a GPU copies from without waiting."""
        return _Reader(io.BytesIO(self._content), self._beside, pinned).load()

    def pin_memory(self) -> Any:
        """As a DataLoader with ``pin_memory=True`` asks for it, in a thread of its own."""
        return self.batch(pinned=True)


class Sent:
    """A ``collate_fn`` whose batches leave a worker as a :class:`Parcel`."""

    def __init__(self, collate: Callable[[Sequence[Any]], Any]) -> None:
        self._collate = collate

    def __call__(self, items: Sequence[Any]) -> Any:
        batch = self._collate(items)
        return batch if get_worker_info() is None else Parcel(batch)


class Receiving(DataLoader[Any]):
    """Opens what arrives."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch's has more methods, which nobody calls
        return map(_opened, super().__iter__())


def _opened(item: Any) -> Any:
    return item.batch() if isinstance(item, Parcel) else item


class _Writer(pickle.Pickler):
    """Pickles all but tensors as ever."""

    def __init__(self, content: io.BytesIO, beside: list[tuple[Tensor, torch.dtype]]) -> None:
        super().__init__(content, protocol=pickle.HIGHEST_PROTOCOL)
        self._beside = beside

    def persistent_id(self, obj: Any) -> Any:
        """A tensor's numbers and dtype, or its place beside the pickle; None for what is pickled."""
        if not isinstance(obj, Tensor):
            return None
        tensor = obj
        if type(obj) is Tensor and obj.dtype in PLAIN and obj.device.type == "cpu" and not obj.requires_grad:
            whole = obj.resolve_neg().numpy()
            array = _narrow(whole)
            sent = array if array.nbytes <= MAX_BYTES else _Sparse.of(array)
            if sent is not None:
                return sent, whole.dtype
            tensor = torch.from_numpy(array)
        self._beside.append((tensor, obj.dtype))
        return len(self._beside) - 1


class _Reader(pickle.Unpickler):
    def __init__(self, content: io.BytesIO, beside: list[tuple[Tensor, torch.dtype]], pinned: bool) -> None:
        super().__init__(content)
        self._beside, self._pinned = beside, pinned

    def persistent_load(self, pid: Any) -> Tensor:
        """The tensor."""
        if isinstance(pid, int):
            tensor, dtype = self._beside[pid]
            wide = tensor.to(dtype)
        else:
            sent, kind = pid
            array = sent.array() if isinstance(sent, _Sparse) else sent
            wide = torch.from_numpy(array.astype(kind, copy=False))  # by one thread
        return wide.pin_memory() if self._pinned else wide


class _Sparse(NamedTuple):
    """An array by the words of it that are not 0."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    place: NDArray[np.uint32]
    word: NDArray[np.uint32]

    @classmethod
    def of(cls, array: NDArray[Any]) -> _Sparse | None:
        """None for one that is not smaller so."""
        if not array.flags.c_contiguous or array.nbytes % 4 or array.nbytes >= 2**34:
            return None
        words = array.reshape(-1).view(np.uint32)
        place = np.flatnonzero(words != 0)
        if 8 * place.size > MAX_BYTES:
            return None
        return cls(array.shape, array.dtype, place.astype(np.uint32), words[place])

    def array(self) -> NDArray[Any]:
        found = np.zeros(self.shape, self.dtype)
        found.reshape(-1).view(np.uint32)[self.place] = self.word
        return found


PLAIN = (  # dtypes that numpy has too
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32,
    torch.float64,
)  # fmt: skip


def _narrow(array: NDArray[Any]) -> NDArray[Any]:
    """The same numbers in the narrowest integers that give them back bit for bit; as they are where none do."""
    if array.dtype.kind == "i" and array.itemsize > 1 and array.size:
        limits = int(array.min()), int(array.max())
        for dtype in INTEGERS:
            if np.iinfo(dtype).min <= limits[0] and limits[1] <= np.iinfo(dtype).max:
                return array.astype(dtype, copy=False)
    if array.dtype.kind == "f" and _as_int8(array.reshape(-1)[:64]) is not None:  # most that are not show it at once
        small = _as_int8(array)
        return array if small is None else small
    return array


def _as_int8(array: NDArray[Any]) -> NDArray[np.int8] | None:
    """These floats; None where int8 does not hold them, signs of zeros included."""
    with np.errstate(invalid="ignore"):
        small = array.astype(np.int8)
    bits = f"u{array.dtype.itemsize}"
    same = np.ascontiguousarray(small.astype(array.dtype)).view(bits) == np.ascontiguousarray(array).view(bits)
    return small if bool(same.all()) else None
